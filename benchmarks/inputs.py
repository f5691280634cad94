"""Files as people have them: what is read of each, beside what is right.

The folder is that of the shared development data, whose README states the right values. Without ``--track`` no network
runs and it takes seconds; with it, what depends on a tracked head is measured too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import av
import numpy as np
import typer
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from benchmarks.harness import Out, Report, table
from nphm_track import tracker
from nphm_track.batch.plan import find_takes, passed_over
from nphm_track.cameras.intrinsics import Intrinsics, focal_from_exif
from nphm_track.errors import InputError
from nphm_track.tracking.records import Status, Track
from nphm_track.video.reader import open_video
from nphm_track.video.writer import VideoWriter

Folder = Annotated[Path, typer.Option(help="Folder of the inputs.")]
WithTracking = Annotated[bool, typer.Option("--track", help="Measure tracked heads, too; some minutes.")]

SAME_POSE, SAME_COLOUR = 0.3, 6.0
"""Degrees, and levels of 255."""
SIDEWAYS = 5.0
"""Degrees from the upright clip up to which a turned one is tracked rightly."""
CAMERAS = {
    "arkit.json": (1280, 720), "colmap_cameras.txt": (1280, 720), "cv.json": (1280, 720), "cv.xml": (1280, 720),
    "kalibr.yaml": (1280, 720), "kalibr_like.json": (1280, 720), "np_savetxt.txt": (1280, 720),
    "ns_camera_angle.json": (1280, 720),
    "ns_perframe.json": (1280, 720), "open3d.json": (1280, 720), "polycam.json": (1280, 720),
    "realsense.json": (1280, 720), "record3d.json": (720, 960), "ros.yaml": (1280, 720),
}  # fmt: skip
"""Files that are read, each for pictures of this size; the others of the folder are refused."""


class Row(NamedTuple):
    """One input: what was found, what is right, and whether that is so."""

    name: str
    found: str
    right: str
    ok: bool


def run(inputs: Folder, out: Out, track: WithTracking = False) -> Report:
    """Every row of the inputs' README, with the figure that decides it."""
    rows = [*_pictures(inputs), *_stills(inputs), *_cards(inputs / "card_tree" / "tree.txt"), *_cameras(inputs / "cal")]
    if track:
        rows += _heads(inputs, out)
    facts = {row.name: {"found": row.found, "right": row.right, "ok": row.ok} for row in rows}
    text = table(["input", "found", "right", ""], [[r.name, r.found, r.right, "ok" if r.ok else "WRONG"] for r in rows])
    return Report({"rows": facts}, [text], all(row.ok for row in rows))


def _frames(path: Path) -> list[NDArray[np.int64]]:
    return [frame.image.astype(np.int64) for frame in open_video(path)]


def _pictures(inputs: Path) -> Iterator[Row]:
    ana, sq = (open_video(inputs / name) for name in ("ana.mp4", "sq.mp4"))
    apart = _apart(_frames(inputs / "ana.mp4"), _frames(inputs / "sq.mp4"))
    shape = f"{ana.info.width}x{ana.info.height}, {apart:.2f} of 255 off sq.mp4"
    same = (ana.info.width, ana.info.height) == (sq.info.width, sq.info.height) and apart < 1
    yield Row("ana.mp4", shape, "the pictures of sq.mp4", same)

    plain = _frames(inputs / "plain.mp4")
    apart = _apart(_frames(inputs / "vflip.mp4"), [image[::-1] for image in plain])
    yield Row("vflip.mp4", f"{apart:.2f} of 255", "plain.mp4 upside down, 0", apart < 0.5)
    apart = _apart(_frames(inputs / "hlg_rot.mov")[:1], plain[:1])
    yield Row("hlg_rot.mov", f"{apart:.1f} of 255", f"plain.mp4 within {SAME_COLOUR}", apart < SAME_COLOUR)
    skin = _frames(inputs / "bt2020sdr.mp4")[0][60, 16 + 32 * 12]
    off = np.abs(skin - [200, 140, 120]).max()
    yield Row("bt2020sdr.mp4", f"skin {skin.tolist()}", "[200, 140, 120] within 6", bool(off < SAME_COLOUR))

    source = open_video(inputs / "s_trim.mp4")
    count = sum(1 for _ in source)
    right = count == source.info.frame_count and source.warning is None
    yield Row("s_trim.mp4", f"{count} frames, {source.warning or 'no warning'}", f"{source.info.frame_count}", right)
    width = open_video(inputs / "two_video.mkv").info.width
    yield Row("two_video.mkv", f"{width} wide", "1280, the default stream", width == 1280)
    with tempfile.TemporaryDirectory() as folder:
        kept = _sounds(_written_anew(inputs / "s_2aud.mkv", Path(folder) / "clip.mp4", with_sound=True))
    default = [kept[0] == sound for sound in _sounds(inputs / "s_2aud.mkv")]
    said = f"{len(kept)} sound kept: the first {default[0]}, the second {default[1]}"
    yield Row("s_2aud.mkv", said, "the second, the default", default == [False, True])
    try:
        said = f"{len(_frames(inputs / 'sizechange.ts'))} frames"
    except InputError as error:
        said = str(error)
    yield Row("sizechange.ts", said, "refused, with the moment", "changes from 640x360 to 360x640" in said)


def _apart(some: list[NDArray[np.int64]], others: list[NDArray[np.int64]]) -> float:
    """Mean absolute difference of pictures, levels of 255; infinite when they are not as many or not of one size."""
    if [a.shape for a in some] != [b.shape for b in others]:
        return np.inf
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(some, others, strict=True)]))


def _stills(inputs: Path) -> Iterator[Row]:
    for name, right in (("tele77_portrait.jpg", 77), ("d105_landscape.jpg", 105)):
        info = open_video(inputs / name).info
        focal = focal_from_exif(inputs / name, (info.width, info.height)) or 0
        film = focal * np.hypot(36, 24) / np.hypot(info.width, info.height)
        yield Row(name, f"{film:.1f} mm on film", f"{right} mm", abs(film - right) < 0.1)
    frames = [(frame.index, round(frame.time * 24)) for frame in open_video(inputs / "seq24", fps=24)]
    numbers = [1001, 1002, 1003, *range(1007, 1020)]
    yield Row("seq24", f"{len(frames)} frames, last {frames[-1]}", "numbers and times with the gap",
              frames == [(n, n - 1001) for n in numbers])  # fmt: skip
    info = open_video(inputs / "mixed").info
    yield Row("mixed", f"{info.frame_count} frames; {'; '.join(info.notes)}", "4 frames, masks named",
              info.frame_count == 4 and bool(info.notes))  # fmt: skip
    apart = _apart(
        _frames(inputs / "mixed"), [f.image.astype(np.int64) for f in open_video(inputs / "mixed", mattes=True)]
    )
    yield Row("mixed, --mattes", f"{apart:.0f} of 255 brighter", "over white", apart > 1)
    mean = _frames(inputs / "g12.tif")[0].mean()
    yield Row("g12.tif", f"mean {mean:.0f} of 255", "not black", bool(mean > 60))


def _cards(tree: Path) -> Iterator[Row]:
    names = tree.read_text().split()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        root, takes = find_takes(Path(folder), Path(folder) / "out")
        over = passed_over(Path(folder), Path(folder) / "out")
        files = {
            path.relative_to(root)
            for take in takes
            for path in ([*take.path.iterdir()] if take.path.is_dir() else [take.path])
        }
        named = files | {Path(name) for name, _ in over}
        people = {take.person for take in takes}
    ok = named == {Path(name) for name in names} and len(people) == 6
    yield Row(
        "card_tree", f"{len(takes)} takes of {len(people)} people, {len(over)} passed over", "every file named", ok
    )


def _cameras(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.iterdir()):
        wanted = CAMERAS.get(path.name)
        shown = (720, 1280) if "portrait" in path.name else (1280, 720)
        try:
            camera = Intrinsics.from_file(path, wanted or shown)
            found = f"fx {camera.K[0, 0]:.0f}, c {camera.K[0, 2]:.1f} {camera.K[1, 2]:.1f}"
        except InputError as error:
            found, camera = str(error).removeprefix(str(path)).strip(": "), None
        yield Row(f"cal/{path.name}", found, "read" if wanted else "refused", (camera is not None) == bool(wanted))


def _heads(inputs: Path, out: Path) -> Iterator[Row]:
    def tracked(clip: Path) -> Track:
        done = tracker.track(clip, out / f"{clip.name}_run", meshes=False, overlay=False, report=False)
        return done.track

    ana, sq = tracked(inputs / "ana.mp4"), tracked(inputs / "sq.mp4")
    anew = tracked(_written_anew(inputs / "sq.mp4", out / "sq_anew.mp4"))
    off, noise = _degrees(ana, sq), _degrees(anew, sq)
    yield Row("ana.mp4, pose", f"{off.mean():.2f} degrees off sq.mp4, at most {off.max():.2f}; sq.mp4 encoded anew "
              f"is {noise.mean():.2f} and {noise.max():.2f} off", f"below {SAME_POSE}, or what encoding anew does",
              bool(off.mean() < SAME_POSE and off.max() < max(SAME_POSE, noise.max())))  # fmt: skip
    apart = float(np.abs(ana.blendshapes - sq.blendshapes).mean())
    yield Row("ana.mp4, expression", f"weights {apart:.3f} off sq.mp4", "below 0.02", apart < 0.02)
    for turns in (1, 2, 3):
        turned = tracked(_written_anew(inputs / "sq.mp4", out / f"sq_turned_{turns}.mp4", turns=turns))
        both = (turned.status == Status.TRACKED) & (sq.status == Status.TRACKED)
        about = Rotation.from_euler("z", -90 * turns, degrees=True).as_matrix()  # the picture turns counter-clockwise
        off = _degrees(turned, replace(sq, R=about @ sq.R))[both]
        found = f"{both.sum()} of {len(sq)} tracked, at most {off.max(initial=0):.1f} degrees off"
        right = "as it is turned, or lost"
        yield Row(f"sq.mp4, turned {90 * turns}", found, right, bool(off.max(initial=0) < SIDEWAYS))
    hanging = tracked(inputs / "upside.mp4")
    down = float(np.nanmean(hanging.R[:, 1, 1]))  # head's y axis along the camera's, which points down
    yield Row(
        "upside.mp4", f"y axis {down:.2f}, {hanging.quality()['lost']} lost", "hangs: y axis above 0.9", down > 0.9
    )
    poster = tracked(inputs / "poster_first.mp4")
    x = float(np.nanmedian(poster.landmarks_fit[..., 0]))
    yield Row("poster_first.mp4", f"person at x = {x:.0f}", "left half: who moves", x < 400)


def _sounds(path: Path) -> list[bytes]:
    """Some encoded sound of each sound stream of a file."""
    with av.open(str(path)) as container:
        found: dict[int, list[bytes]] = {stream.index: [] for stream in container.streams.audio}
        for packet in container.demux(*container.streams.audio):
            found[packet.stream.index].append(bytes(packet))
    return [b"".join(packets) for packets in found.values()]


def _written_anew(clip: Path, path: Path, *, with_sound: bool = False, turns: int = 0) -> Path:
    """The same pictures, turned a quarter so often, through an encoder, whose noise nobody sees."""
    with open_video(clip) as source:
        width, height = source.info.width, source.info.height
        with VideoWriter(
            path, (height, width) if turns % 2 else (width, height), source=clip if with_sound else None
        ) as writer:
            for frame in source:
                writer.write(np.ascontiguousarray(np.rot90(frame.image, turns)), frame.time)
    return path


def _degrees(track: Track, other: Track) -> NDArray[np.float64]:
    """Angles [T] between the poses of two tracks."""
    cosine = (np.trace(track.R.swapaxes(1, 2) @ other.R, axis1=1, axis2=2) - 1) / 2
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
