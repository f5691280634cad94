"""Photo-like clips whose heads are known: held-out people's skin on heads that speak, smile, blink and turn.

Each clip is one head in one photo's skin, one light and one place, drawn as the training draws its renders, and tracked
as a video of known focal length (--frames 1: as a still). Errors are distances of face vertices in mm: of the shape and
of the posed face, without what moving, turning and scaling explains, of the expression, of its part that stays and of
the part that moves. Correlations are those of weights over the frames. ``toward`` is the cosine between what --refine
changes of the shape and what was wrong of it: 0 when a refinement tells nothing of the person.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks.data import speech
from benchmarks.harness import Ict, Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.faces.roi import CROP_SIZE
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Track
from nphm_track.training.face_stream import FRAME, FaceBatch, FaceStream, View, roi_cameras, rotation
from nphm_track.training.head_terms import HeadTerms
from nphm_track.training.photo_fit import LANDMARKS
from nphm_track.training.renders import Renders
from nphm_track.training.rng import Rng
from nphm_track.training.texture_bank import TextureBank
from nphm_track.video.writer import VideoWriter

PHOTOS, SEED, FPS = 60, 900_000, 30.0
FILL = 0.62
"""Of the frame's side that a face fills."""
WAVES = ("mouthSmile_", "browInnerUp_", "eyeSquint_", "mouthPucker")
SHOWN = ("jawOpen", "mouthSmile_L", "eyeBlink_L", "mouthPucker", "browInnerUp_L")


def run(
    ict: Ict, out: Out,
    photos: Annotated[Path, typer.Option(help="Folder of the photos.")],
    fits: Annotated[Path, typer.Option(help="File of training/build_photo_fits.py.")],
    clips: int = 8, frames: int = 60, refine: bool = False,
) -> Report:  # fmt: skip
    """Means over the clips."""
    prepare_torch()
    out.mkdir(parents=True, exist_ok=True)
    terms = HeadTerms("nphm-small", str(ict), LANDMARKS)
    stream = ClipStream.open(ict, photos, fits, heldout=True, limit=PHOTOS, renders=Renders(painted=0, follow=0))
    assert isinstance(stream, ClipStream)
    stream.population = TextureBank.read(fits, photos, stream.heads, heldout=False, limit=PHOTOS).w.mean(0)
    rows: dict[str, list[dict[str, float]]] = {}
    for k in range(clips):
        truth = stream.clip(SEED + k, frames)
        options: dict[str, Any] = {"focal": float(roi_cameras(truth.K, truth.roi, CROP_SIZE)[0][0, 0, 0])}
        clip, tracks = write_clip(out / f"clip{k:02d}", truth.crop), []
        for name in ("feed-forward", "refined")[: 1 + refine]:
            options |= {"refine": name == "refined", "meshes": False, "overlay": False, "overwrite": True}
            tracks.append(track(clip, out / f"clip{k:02d}_{name}", **options).track)
            rows.setdefault(name, []).append(measure(terms, tracks[-1], truth))
        if refine:
            rows["refined"][-1]["toward"] = toward(terms, tracks[0], tracks[1], truth)
    means = {name: {key: float(np.mean([r[key] for r in found])) for key in found[0]} for name, found in rows.items()}
    body = [[key, *(m.get(key) for m in means.values())] for key in list(means.values())[-1]]
    head = f"{clips} clips of {frames} frames; mm, correlations over the frames."
    return Report({"mean": means, "clips": rows}, [head, table(["", *means], body)])


class SameForAll(Rng):
    """One sample's chance for a whole batch."""

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return super().uniform(1, *shape[1:], low=low, high=high).expand(*shape).contiguous()

    def normal(self, *shape: int) -> Tensor:
        return super().normal(1, *shape[1:]).expand(*shape).contiguous()

    def below(self, bound: int, *shape: int) -> Tensor:
        return super().below(bound, 1, *shape[1:]).expand(*shape).contiguous()


class ClipStream(FaceStream):
    """Batches that are the frames of a clip, seen by a camera at rest."""

    rng = SameForAll

    def clip(self, seed: int, frames: int) -> FaceBatch:
        rng, times = np.random.default_rng(seed), np.arange(frames) / FPS
        e = speech(rng, self.heads.names, times)
        for name in WAVES:
            height, phase, rate = rng.uniform(0, 0.6), rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1)
            sides = [i for i, n in enumerate(self.heads.names) if n.startswith(name)]
            e[:, sides] = (height * (0.5 + 0.5 * np.sin(2 * np.pi * rate * times + phase)))[:, None]

        def turn(usual: float, swing: float, rate: float) -> Tensor:
            wave = np.sin(2 * np.pi * rate * times + rng.uniform(0, 2 * np.pi))
            return torch.from_numpy(usual + swing * wave).float()

        yaw, pitch, roll = turn(rng.uniform(-25, 25), 8, 0.5), turn(rng.uniform(-10, 10), 4, 0.7), turn(0, 4, 0.4)
        flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        self.R = flip @ rotation(2, roll) @ rotation(0, pitch) @ rotation(1, yaw)
        self.e, self.focal = torch.from_numpy(e), FRAME / 2 / np.tan(np.radians(rng.uniform(25, 60)) / 2)
        return self.draw(seed, frames)

    def _codes(self, rng: Rng, row: Tensor) -> tuple[Tensor, Tensor]:
        return rng.normal(len(row), 100).clamp(-3, 3) + self.population, self.e

    def _view(self, rng: Rng, row: Tensor, follow: Tensor) -> View:
        K = torch.tensor([[self.focal, 0, FRAME / 2], [0, self.focal, FRAME / 2], [0, 0, 1]]).float()
        t = torch.tensor([0, 0, self.focal * 0.19 / (FRAME * FILL) + 0.07]).float()
        b = len(row)
        return View(K.expand(b, 3, 3), self.R, t.expand(b, 3), torch.full((b, 2), FRAME))

    def _bumps(self, rng: Rng, vertices: Tensor) -> Tensor:
        return vertices  # the truth is a head of the model's

    def _roi(self, rng: Rng, w: Tensor, e: Tensor, view: View) -> Tensor:
        return torch.tensor([FRAME / 2, FRAME / 2, FRAME, FRAME, 0.0]).expand(len(w), 5).contiguous()


def write_clip(path: Path, frames: Tensor) -> Path:
    """Crops [T, 3, H, W] in 0..1 as a video, a single one as a picture; returns ``path`` with its suffix."""
    images = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    if len(images) == 1:
        Image.fromarray(images[0]).save(path := path.with_suffix(".png"))
        return path
    with VideoWriter(path := path.with_suffix(".mp4"), (CROP_SIZE, CROP_SIZE), frame_rate_hint=FPS) as writer:
        for k, image in enumerate(images):
            writer.write(image, k / FPS)
    return path


def shifts(basis: Tensor, weights: Tensor) -> Tensor:
    """Of vertices [..., V, 3], mm."""
    return (weights @ basis).unflatten(-1, (-1, 3)) * MODEL_UNIT * 1000


@torch.no_grad()
def measure(terms: HeadTerms, result: Track, truth: FaceBatch) -> dict[str, float]:
    """Errors in mm and correlations of one tracked clip."""
    w, e = terms.weights(torch.from_numpy(result.z_id).float().view(1, -1), torch.from_numpy(result.z_ex).float())
    shape, missed = shifts(terms.identity, w - truth.w), shifts(terms.expression, e - truth.e)
    moving = shifts(terms.expression, truth.e - truth.e.mean(0))
    errors = {
        "shape": terms.placed(shape), "posed": terms.placed(shape + missed), "expression": missed,
        "constant": missed.mean(0), "moving": missed - missed.mean(0), "true motion": moving,
    }  # fmt: skip
    facts = {name: float(error.norm(dim=-1).mean()) for name, error in errors.items()}
    for name in SHOWN if len(e) > 1 else ():
        i = terms.head.config.expression_names.index(name)
        facts[name] = float(torch.corrcoef(torch.stack([e[:, i], truth.e[:, i]]))[0, 1])
    return facts


@torch.no_grad()
def toward(terms: HeadTerms, before: Track, after: Track, truth: FaceBatch) -> float:
    """Cosine between the change of the shape and what was wrong of it."""
    codes = torch.stack([torch.from_numpy(t.z_id).float() for t in (before, after)])
    first, second = terms.weights(codes, torch.zeros(2, terms.from_ex.shape[1]))[0]
    wrong, change = (
        terms.placed(shifts(terms.identity, w)).flatten() for w in (truth.w[:1] - first, (second - first)[None])
    )
    return float(torch.cosine_similarity(wrong, change, dim=0))
