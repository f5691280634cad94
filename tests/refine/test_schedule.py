"""Key frames, windows, resuming and the report of a refinement, on maps made by the head model itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.config_file import to_toml
from nphm_track.errors import InputError
from nphm_track.faces.roi import crop_points_to_frame
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.refine.clip import Clip, Head
from nphm_track.refine.codes import State
from nphm_track.refine.config import FRAMES, PERSON, RefineConfig, Stage, groups
from nphm_track.refine.key_frames import key_frames
from nphm_track.refine.landmarks import POINTS, Landmarks
from nphm_track.refine.pixels import Targets, rays_of
from nphm_track.refine.schedule import Refiner, frame_dtype, person_dtype, refine_clip
from nphm_track.refine.source import ClipMaps
from nphm_track.refine.terms import Terms
from nphm_track.refine.tracks import Follower, Tracks
from nphm_track.rigid import rotation

QUICK = RefineConfig(
    window=4,
    overlap=1,
    key_frames=2,
    report_pixels=16,
    person=tuple(
        stage.model_copy(update={"pixels": 24, "steps": n}) for stage, n in zip(PERSON, (1, 2, 1, 1), strict=True)
    ),
    frames=tuple(
        stage.model_copy(update={"pixels": pixels, "steps": n})
        for stage, pixels, n in zip(FRAMES, (16, 16, 24), (1, 2, 2), strict=True)
    ),
)
T, CELLS = 6, 16


class Log:
    """Records in memory."""

    def __init__(self, dtype: np.dtype[Any], records: np.ndarray | None = None) -> None:
        self.records = np.empty(0, dtype) if records is None else records

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: Any) -> None:
        self.records = np.concatenate([self.records, np.atleast_1d(record)])

    def read(self) -> np.ndarray:
        return self.records


@pytest.fixture(scope="module")
def head(person: Any) -> Head:
    return Head(person.model, person.truth.z_id)


@pytest.fixture(scope="module")
def truth(person: Any) -> State:
    """Six frames of a slow turn."""
    angle = torch.linspace(-0.1, 0.1, T, dtype=torch.float64)
    turns = torch.stack([0 * angle, angle, 0 * angle], 1)
    R = rotation(turns) @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    t = torch.tensor([0.0, 0.0, 0.55], dtype=torch.float64).repeat(T, 1)
    return State(person.truth.z_id, person.truth.z_ex[:1].repeat(T, 1), R, t, person.truth.K)


@pytest.fixture(scope="module")
def maps(person: Any, head: Head, truth: State) -> GeometryMaps:
    return perfect_maps(person, head, truth)


def perfect_maps(person: Any, head: Head, truth: State) -> GeometryMaps:
    """What perfect networks see of the truth."""
    roi = torch.tensor([160.0, 165.0, 130.0, 130.0, 0.0]).repeat(T, 1)
    i, j = np.meshgrid(np.arange(CELLS), np.arange(CELLS), indexing="ij")
    cells = torch.arange(CELLS * CELLS).repeat(T, 1)
    grid = np.stack([j.ravel(), i.ravel()], -1)[None] + 0.5
    pixels = torch.from_numpy(crop_points_to_frame(grid, roi.numpy(), CELLS))
    nothing = torch.zeros(T, CELLS * CELLS)
    targets = Targets(pixels, cells, nothing, nothing, nothing, nothing)
    depth, hit = head.depths(head.posed(truth.z_ex), truth, targets, roi, CELLS)
    rays = rays_of(truth, pixels, depth)
    seen = person.renderer.see(rays, truth.z_id, truth.z_ex)
    points = rays.origin + seen.depth[:, None] * rays.direction
    sure = (seen.valid & hit.flatten()).float().view(T, CELLS, CELLS)
    assert sure.mean() > 0.5
    shape = (T, CELLS, CELLS, 3)
    return GeometryMaps(seen.normal.view(shape), points.view(shape), sure, sure, roi, torch.zeros(T, 3, 32, 32))


@pytest.fixture(scope="module")
def clip(person: Any, truth: State) -> Clip:
    """The feed-forward result: poses and expressions are off."""
    generator = torch.Generator().manual_seed(2)
    weights = 0.1 * torch.randn(1, person.space.expression.shape[1], generator=generator)
    start = replace(
        truth,
        z_ex=truth.z_ex + weights @ person.space.expression.mT,
        R=rotation(0.02 * torch.randn(T, 3, generator=generator).double()) @ truth.R,
        t=truth.t + 0.003 * torch.randn(T, 3, generator=generator).double(),
    )
    times, one = np.arange(T) / 30.0, np.ones(T, np.float32)
    landmarks = perfect_landmarks(person, truth)
    return Clip(start, person.camera, True, True, times, np.zeros(T, np.int64), one, landmarks)


def perfect_landmarks(person: Any, truth: State) -> NDArray[np.float32]:
    landmarks = np.full((T, 478, 2), np.nan, np.float32)
    marks = person.landmarks.carry(truth.z_id, truth.z_ex).double() @ truth.R.mT + truth.t[:, None]
    landmarks[:, list(POINTS)] = ((marks / marks[..., 2:]) @ truth.K.mT)[..., :2].numpy()
    return landmarks


def with_pixels(stages: tuple[Stage, ...], pixels: int) -> tuple[Stage, ...]:
    return tuple(stage.model_copy(update={"pixels": pixels}) for stage in stages)


def run(
    person: Any, clip: Clip, maps: GeometryMaps, records: np.ndarray | None = None, config: RefineConfig = QUICK
) -> np.ndarray:
    def source(rows: NDArray[np.int64]) -> GeometryMaps:
        return GeometryMaps(*(v[rows] for v in vars(maps).values()))

    c = person.model.config
    logs = Log(person_dtype(c.identity_dim)), Log(frame_dtype(c.expression_dim), records)
    return refine_clip(person.model, clip, source, config, *logs).frames


def test_windows_find_the_truth_and_resume(person: Any, clip: Clip, maps: GeometryMaps, truth: State) -> None:
    frames = run(person, clip, maps)
    assert len(frames) == T and not frames["rolled_back"].any()
    assert (frames["after"] < frames["before"]).all(), (frames["before"], frames["after"])
    off = np.linalg.norm(frames["t"] - truth.t.numpy(), axis=1)
    assert off.mean() < 0.4 * np.linalg.norm(clip.start.t.numpy() - truth.t.numpy(), axis=1).mean()
    resumed = run(person, clip, maps, frames[: QUICK.window - QUICK.overlap].copy())
    for name in ("z_ex", "R", "t"):
        assert np.allclose(frames[name], resumed[name], atol=1e-6), name


def test_followed_skin_tells_poses_in_windows(
    person: Any, clip: Clip, maps: GeometryMaps, truth: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skin that is seen where the true head has it leaves less of the poses' errors than maps and landmarks alone."""
    marks = Landmarks(person.model, person.space, Refiner(person.model, clip, lambda _: maps, QUICK).marks.points)
    camera = marks.carry(truth.z_id, truth.z_ex).double() @ truth.R.mT + truth.t[:, None]
    pixels = (camera @ truth.K.mT)[..., :2] / camera[..., 2:]

    def follow(self: Follower, crops: Tensor, rois: Tensor, lens: Any, state: State, *_: Any) -> Tracks:
        frames = torch.cdist(rois[:, :1].double(), which[:, None]).argmin(1)
        found = pixels[frames][:, self.index]
        whiten = torch.eye(2).double().expand(*found.shape, 2) / 0.3
        return Tracks(self.index, found, whiten, whiten * state.K[0, 0] / 0.55)

    which = 160 + 1e-3 * torch.arange(T).double()  # a mark on every frame's maps, to know them by
    marked = replace(maps, rois=torch.cat([which[:, None].float(), maps.rois[:, 1:]], 1))
    noisy = replace(clip, landmarks=clip.landmarks + np.random.default_rng(0).normal(0, 1, clip.landmarks.shape))
    monkeypatch.setattr(Follower, "__call__", follow)

    def off(points: int) -> float:
        frames = run(person, noisy, marked, config=QUICK.model_copy(update={"track_points": points}))
        return float(np.linalg.norm(frames["R"] - truth.R.numpy(), axis=(1, 2)).mean())

    assert off(QUICK.track_points) < 0.8 * off(0)


def test_an_image_is_finished_with_its_identity(person: Any, clip: Clip, maps: GeometryMaps) -> None:
    """One stage does all, and nothing is drawn for a window."""
    image = replace(clip, **_first(clip, 1), identity_known=False)
    config = QUICK.model_copy(update={"person": with_pixels(QUICK.person, 32)})
    asked: list[int] = []

    def source(rows: NDArray[np.int64]) -> GeometryMaps:
        asked.extend(rows.tolist())
        return GeometryMaps(*(v[rows] for v in vars(maps).values()))

    c = person.model.config
    logs = Log(person_dtype(c.identity_dim)), Log(frame_dtype(c.expression_dim))
    refined = refine_clip(person.model, image, source, config, *logs)
    assert asked == [0] and len(refined.frames) == 1
    assert (refined.frames["after"][0, ::2] < refined.frames["before"][0, ::2]).all()
    assert not torch.equal(refined.state.z_id, clip.start.z_id)
    assert torch.equal(refined.state.K, clip.start.K), "the focal length is the clip's"

    def moved(**sigma: float) -> float:
        """How far the identity goes from the feed-forward one."""
        weighted = config.model_copy(update={"terms": config.terms.changed({"identity": sigma})})
        state = Refiner(person.model, image, source, weighted).solve_person()[0]
        return float((state.z_id - clip.start.z_id).norm())

    own = float((refined.state.z_id - clip.start.z_id).norm())
    assert own < 0.6 * moved(image_sigma=0.1)
    assert own == moved(sigma=0.1), "that is for clips"


def test_maps_of_more_frames_are_hardly_more_evidence(person: Any, clip: Clip, maps: GeometryMaps) -> None:
    """Every frame's points say that the head is larger: four believe it less than four that err independently would."""
    assert Terms().of_person(4).normals.evidence == Terms().normals.evidence / 2
    lie = replace(maps, points=1.03 * maps.points)

    def source(rows: NDArray[np.int64]) -> GeometryMaps:
        return GeometryMaps(*(v[rows] for v in vars(lie).values()))

    def moved(times: float) -> float:
        usual = Terms()
        terms = usual.changed({n: {"evidence": times * getattr(usual, n).evidence} for n in ("normals", "points")})
        longer = tuple(
            stage.model_copy(update={"steps": n}) for stage, n in zip(QUICK.person, (1, 4, 2, 2), strict=True)
        )
        config = QUICK.model_copy(update={"key_frames": 4, "terms": terms, "person": longer})
        state = Refiner(person.model, replace(clip, identity_known=False), source, config).solve_person()[0]
        return float((state.z_id - clip.start.z_id).norm())

    assert moved(1) < 0.95 * moved(2)


def test_a_frame_that_got_worse_is_rolled_back(person: Any, clip: Clip, maps: GeometryMaps, truth: State) -> None:
    """The feed-forward state is the truth, and the points of the maps pull it away."""
    lie = replace(maps, points=maps.points + torch.tensor([0.0, 0.02, 0.0]))
    frames = run(person, replace(clip, start=truth), lie)
    assert frames["rolled_back"].all()
    assert np.allclose(frames["t"], truth.t.numpy())


def test_frames_without_evidence_are_carried_by_their_neighbours(
    person: Any, clip: Clip, maps: GeometryMaps, truth: State
) -> None:
    pixels = 16  # of which a step of this length lost many when they were looked at once
    landmarks, sure, seen = clip.landmarks.copy(), maps.normal_confidence.clone(), clip.confidence.copy()
    landmarks[2], sure[2], seen[2] = np.nan, 0, 0
    start = replace(clip.start, t=clip.start.t.clone())
    start.t[2, 2] += 0.02
    hidden = replace(maps, normal_confidence=sure, point_confidence=sure)
    frames_at = (*with_pixels(QUICK.frames[:2], pixels), QUICK.frames[2])
    config = QUICK.model_copy(update={"report_pixels": pixels, "frames": frames_at})
    frames = run(person, replace(clip, landmarks=landmarks, confidence=seen, start=start), hidden, config=config)
    assert np.isnan(frames["after"][2]).all() and np.isfinite(frames["z_ex"]).all()
    assert np.linalg.norm(frames["t"][2] - truth.t[2].numpy()) < 0.003


def test_a_blink_that_the_regressor_missed_shows(person: Any, clip: Clip, head: Head, truth: State) -> None:
    """The start has no trace of it and neither have the neighbours: smoothing and the pull to the start must leave it.

    Not all of it comes back: two fifths here, and up to three fifths with more steps.
    """
    names, at = person.model.config.expression_names, 1
    lids = [names.index("eyeBlink_L"), names.index("eyeBlink_R")]
    weights = torch.zeros(T, len(names))
    weights[at, lids] = 0.8
    blinking = replace(truth, z_ex=truth.z_ex + weights @ person.space.expression.mT)
    seen = replace(clip, start=truth, landmarks=perfect_landmarks(person, blinking))
    frames = run(person, seen, perfect_maps(person, head, blinking))

    def opening(z_ex: Tensor) -> Tensor:  # [T, 2] metres between the lids
        marks = person.landmarks.carry(truth.z_id, z_ex)
        upper, lower = ([POINTS.index(p) for p in pair] for pair in ((159, 386), (145, 374)))
        return (marks[:, upper] - marks[:, lower]).norm(dim=-1)

    still, true = opening(truth.z_ex), opening(blinking.z_ex)
    closed = (still - opening(torch.from_numpy(np.array(frames["z_ex"])))) / (still - true)[at]
    assert closed[at].min() > 0.3, closed
    assert closed[[0, 2, 3, 4, 5]].abs().max() < 0.2, closed


def test_stages_of_other_pixels_or_new_tracks_start_from_the_mesh() -> None:
    def pixels(followed: bool) -> list[list[int]]:
        return [[stage.pixels for stage in stages] for stages in groups(PERSON, followed=followed)]

    assert pixels(True) == [[300, 300], [400], [400]] and pixels(False) == [[300, 300], [400]]


def test_a_config_file_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "refine.toml"
    path.write_text("key_frames = 20\n[terms.normals]\nevidence = 50\n")
    config = RefineConfig.from_file(path)
    assert (config.key_frames, config.terms.normals.evidence, config.person) == (20, 50, PERSON)
    path.write_text(to_toml(RefineConfig()))
    assert RefineConfig.from_file(path) == RefineConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key_frame = 20", "key_frame"),
        ("[terms.normal]\nevidence = 1", "terms.normal"),
        ("[terms.normals]\nevidence = -1", "terms.normals.evidence"),
        ('[[frames]]\nfree = ["identity"]\npixels = 20\nsteps = 1', "identity and focal"),
        ("[[person]]\npixels = 20\nsteps = 1\nterms = {tracks = {weight = 1}}", "weight"),
        ("[[person]]\npixels = 20\nsteps = 1\nonly_followed = true", "does without"),
        ("overlap = 40", "overlap"),
        ("window =", "is not a refine config"),
    ],
)
def test_what_is_wrong_with_a_config_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "refine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        RefineConfig.from_file(path)
    assert "\n" not in str(error.value)


def test_key_frames_are_sure_and_differ(clip: Clip) -> None:
    chosen = key_frames(clip, 3)
    assert len(chosen) == 3 and (np.diff(chosen) > 0).all()
    unsure = replace(clip, confidence=np.array([1, 1, 0.2, 1, 1, 0.1], np.float32))
    assert not {2, 5} & set(key_frames(unsure, 4).tolist())
    assert key_frames(replace(clip, **_first(clip, 1)), 5).tolist() == [0]


def _first(clip: Clip, count: int) -> dict[str, Any]:
    arrays = {k: getattr(clip, k)[:count] for k in ("times", "segments", "confidence", "landmarks")}
    return arrays | {"start": clip.start.rows(slice(count))}


class Frames:
    """A clip whose frames are their numbers."""

    def __init__(self) -> None:
        self.opened = 0

    def frames(self, done: int = 0) -> Iterator[Any]:
        self.opened += 1
        for k in range(done, 10):
            yield type("F", (), {"image": np.full((2, 2, 3), k, np.uint8)})


def test_maps_are_predicted_once_and_read_forward() -> None:
    asked: list[int] = []

    def predict(images: Any, rows: NDArray[np.int64]) -> GeometryMaps:
        asked.extend(rows.tolist())
        value = torch.tensor([float(image[0, 0, 0]) for image in images])[:, None, None].expand(-1, 4, 4)
        vector = value[..., None].expand(-1, -1, -1, 3)
        return GeometryMaps(
            vector, vector, value, value, torch.zeros(len(images), 5), torch.zeros(len(images), 3, 8, 8)
        )

    source: Any = Frames()
    positions = np.array([0, 1, 2, 4, 5, 6, 7])
    seen = np.array([True, True, False, True, True, True, True])
    maps = ClipMaps(source, positions, seen, predict)
    assert maps(np.array([1, 4])).normal_confidence[:, 0, 0].tolist() == [1, 5]
    assert maps(np.arange(4)).normal_confidence[:, 0, 0].tolist() == [0, 1, 0, 4]
    assert maps(np.arange(2, 7)).normal_confidence[:, 0, 0].tolist() == [0, 4, 5, 6, 7]
    assert asked == [1, 4, 0, 3, 4, 5, 6] and source.opened == 2
