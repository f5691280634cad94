"""Peak memory of the job on a short and on a long 720p file, made by looping a clip; it must not grow with the length.

python benchmarks/memory.py CLIP --out FOLDER [--minutes 20] [--stages observe,fit,meshes,overlay] [--small | --real]

Each file is tracked in a process of its own, whose peak resident memory is read at the end of every stage. The real job
takes hours on 20 minutes of film, so without --real these steps are replaced, in both files alike, as the table says:

* faces: the networks see the first round of the loop only; later rounds repeat what they saw (decoding stays real),
* fit: the head's landmarks are carried for the focal length and the first 256 frames, whose places are then repeated,
* surface: vertices are the canonical ones in every frame (the first block of frames is carried for real),
* meshes: one .ply in 100 is written; overlay: one head in 25 is drawn, every frame is decoded and encoded.

Reading, observation log, camera, PnP, smoothing, track.npz, transforms.json and the overlay's video are real.

--small is for an hour in a few minutes: 180 lines, the coarsest mesh, poses solved for 256 frames and repeated; every
mesh is written (--mesh-format npz) and every head drawn. What a frame leaves behind is as real as in a large picture,
and the memory in use is read all along each stage.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av

STAGES = ("observe", "fit", "meshes", "overlay")
SHORT_SECONDS = 20.0
LIMIT_MB = 300
MESH_EVERY, DRAW_EVERY = 100, 25
SMALL_HEIGHT, SMALL = 180, {"mesh_resolution": 32, "mesh_format": "npz", "report": False}
SAMPLE_EVERY = 1000
"""Frames between two readings of the memory in use."""


def loop_clip(clip: Path, target: Path, seconds: float, height: int = 720) -> int:
    """Write ``target`` (H.264 with the clip's sound) of at least ``seconds`` by repeating a clip; frames a round.

    An H.264 clip of that height is copied packet by packet; another is encoded once first.
    """
    with av.open(str(clip)) as probe:
        video = probe.streams.video[0]
        fits = video.codec_context.name == "h264" and video.height == height
    round_file = clip if fits else _scaled(clip, target.with_suffix(".round.mp4"), height)
    with av.open(str(target), "w", format="mp4") as output:
        offset, frames = 0.0, 0
        streams: dict[str, Any] = {}
        while offset < seconds:
            with av.open(str(round_file)) as source:
                chosen = [*source.streams.video[:1], *source.streams.audio[:1]]
                streams = streams or {s.type: output.add_stream_from_template(s) for s in chosen}
                frames, end = 0, 0.0
                for packet in source.demux(chosen):
                    if packet.dts is None or packet.pts is None:
                        continue
                    shift = round(offset / packet.time_base)
                    if packet.stream.type == "video":
                        frames += 1
                        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.type]
                    output.mux(packet)
                if not end:
                    raise SystemExit(f"{round_file}: its packets carry no times; re-encode it first")
                offset += end
    return frames


def _scaled(clip: Path, target: Path, height: int) -> Path:
    """The clip scaled to a height in pixels, without sound."""
    with av.open(str(clip)) as source, av.open(str(target), "w", format="mp4") as output:
        stream = source.streams.video[0]
        width = round(stream.width * height / 2 / stream.height) * 2
        options = {"preset": "veryfast", "bf": "0"}  # rounds follow one another
        encoder = output.add_stream("libx264", rate=stream.average_rate, options=options)
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        for frame in source.decode(stream):
            output.mux(encoder.encode(frame.reformat(width, height, "yuv420p")))
        output.mux(encoder.encode(None))
    return target


def peak_mb() -> float:
    """Peak resident memory of this process, MB (mapped files included)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def used_mb() -> float:
    """Resident memory of this process that is its own, MB (mapped files excluded); the peak where that is unknown."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return peak_mb()
    return (int(fields[1]) - int(fields[2])) * resource.getpagesize() / 1024**2


class PeakProgress:
    """Remembers the peak at the end of every stage, and the memory in use along it."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self.used: dict[str, list[float]] = {}
        self._stage, self._done = "start", 0

    def stage(self, name: str, total: int | None = None) -> None:
        self.peaks[self._stage] = peak_mb()
        self._stage, self._done = name, 0

    def advance(self, n: int = 1) -> None:
        """Frames that are done together count together."""
        before, self._done = self._done, self._done + n
        if before // SAMPLE_EVERY != self._done // SAMPLE_EVERY:
            self.used.setdefault(self._stage, []).append(round(used_mb(), 1))

    def note(self, text: str) -> None:
        self.peaks[self._stage] = peak_mb()


def stub(frames_a_round: int, small: bool) -> None:
    """Replace, in this process, the steps that cost hours and hold no memory between frames."""
    import numpy as np
    import torch

    from nphm_track.conventions import MODEL_UNIT
    from nphm_track.faces.follower import FaceFollower, FollowResult
    from nphm_track.regressor.predictor import CodePredictor
    from nphm_track.rendering.overlay import OverlayRenderer
    from nphm_track.tracking import fit, mesh_store
    from nphm_track.tracking.render import BLOCK, SurfaceCarrier

    real_step, real_carry, real_draw, real_write = (
        FaceFollower.step, SurfaceCarrier.__call__, OverlayRenderer.draw, mesh_store.write_ply
    )  # fmt: skip
    real_landmarks, real_codes, real_poses = fit.head_landmarks, CodePredictor.__call__, fit._solve_poses
    seen: list[FollowResult] = []
    posed: list[Any] = []
    codes: list[Any] = []
    poses: list[Any] = []
    counts = {"step": 0, "draw": 0, "write": 0}

    def turn(name: str) -> int:
        counts[name] += 1
        return counts[name] - 1

    def step(self: FaceFollower, image: Any, time: float) -> FollowResult:
        k = turn("step")
        if k < frames_a_round:
            seen.append(real_step(self, image, time))
        return seen[k % frames_a_round]

    def predict(self: CodePredictor, images: Any, faces: Any) -> Any:
        if sum(len(c.z_ex) for c in codes) < frames_a_round:
            codes.append(real_codes(self, images, faces))
            return codes[-1]
        rows = torch.arange(len(images))
        return type(codes[0])(**{name: value[rows % len(value)] for name, value in vars(codes[0]).items()})

    def solve(points: Any, *arguments: Any) -> Any:
        if len(poses) < 3 or len(poses[-1][0]) < len(points):  # two for the rest expression
            poses.append(real_poses(points, *arguments))
            return poses[-1]
        return tuple(value[: len(points)] for value in poses[-1])

    def landmarks(carrier: Any, z_ex: Any) -> Any:
        if len(posed) < 2:
            posed.append(real_landmarks(carrier, z_ex))
            return posed[-1]
        return posed[1][np.arange(len(z_ex)) % len(posed[1])]

    def carry(self: SurfaceCarrier, row: int) -> Any:
        return real_carry(self, row) if row < BLOCK else self._carry.canonical.cpu().numpy() * np.float32(MODEL_UNIT)

    def draw(self: OverlayRenderer, image: Any, *head: Any) -> Any:
        return real_draw(self, image, *head) if turn("draw") % DRAW_EVERY == 0 else image

    def write(*args: Any) -> None:
        if turn("write") % MESH_EVERY == 0:
            real_write(*args)

    shared = [
        (FaceFollower, "step", step),
        (CodePredictor, "__call__", predict),
        (fit, "head_landmarks", landmarks),
        (SurfaceCarrier, "__call__", carry),
    ]
    own = (
        [(fit, "_solve_poses", solve)] if small else [(OverlayRenderer, "draw", draw), (mesh_store, "write_ply", write)]
    )
    for owner, name, stand_in in [*shared, *own]:
        setattr(owner, name, stand_in)


def child(clip: Path, out: Path, stages: list[str], frames_a_round: int, small: bool) -> None:
    """Track one file and print the peaks as JSON."""
    from nphm_track import track

    if frames_a_round:
        stub(frames_a_round, small)
    progress = PeakProgress()
    start, begun = time.perf_counter(), time.process_time()
    options = {"meshes": "meshes" in stages, "overlay": "overlay" in stages, **(SMALL if small else {})}
    run = track(clip, out, overwrite=True, progress=progress, **options)
    progress.stage("end")
    facts = {
        "frames": len(run.track),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - begun,
        "peak_mb": peak_mb(),
        "stages_mb": progress.peaks,
        "used_mb": progress.used,
        "size": f"{run.info.input.width}x{run.info.input.height}",
    }
    print(json.dumps(facts))


def measure(clip: Path, out: Path, stages: list[str], frames_a_round: int, small: bool) -> dict[str, Any]:
    """Run ``child`` in a process of its own: this one stays small, for a child's peak starts from its parent's."""
    command = [sys.executable, __file__, str(clip), "--out", str(out), "--stages", ",".join(stages)]
    command += ["--child", str(frames_a_round), *(["--small"] if small else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"tracking {clip} failed")
    return json.loads(done.stdout.splitlines()[-1])


def markdown(facts: dict[str, Any]) -> str:
    from report import table

    short, long = facts["short"], facts["long"]
    stages = [[name, peak, long["stages_mb"].get(name)] for name, peak in short["stages_mb"].items()]
    rows = [
        ["frames", short["frames"], long["frames"]],
        ["seconds it took", short["seconds"], long["seconds"]],
        ["seconds of one core", short["cpu_seconds"], long["cpu_seconds"]],
        *([f"peak MB after '{name}'", a, b] for name, a, b in stages),
        ["peak MB", short["peak_mb"], long["peak_mb"]],
    ]
    growth = long["peak_mb"] - short["peak_mb"]
    verdict = f"Growth {growth:.0f} MB; the limit is {LIMIT_MB} MB: {'kept' if growth <= LIMIT_MB else 'NOT kept'}."
    along = [
        [name, SAMPLE_EVERY * len(used), used[0], used[len(used) // 2], used[-1]]
        for name, used in long["used_mb"].items()
    ]
    readings = table(["memory in use, MB", "frames", "at first", "halfway", "at last"], along)
    how = "Everything was real." if facts["real"] else (
        "Replaced: the networks ran on the first round of the loop only and their results were repeated; landmarks of "
        "the head and poses were solved for the first frames and repeated; the surface was carried in the first block "
        "only. Every mesh was written, every head drawn." if facts["small"] else
        "Replaced in both: the face networks ran on the first round of the loop only and their results were repeated; "
        "the head's landmarks were carried for the focal length and 256 frames, and repeated; the surface was carried "
        f"in the first 32 frames only; one mesh in {MESH_EVERY} was written; one head in "
        f"{DRAW_EVERY} was drawn."
    )  # fmt: skip
    scope = f"Steps run: {', '.join(facts['stages'])}. {long['size']}."
    peaks = table(["", "short file", f"{facts['minutes']:g} minutes"], rows)
    return "\n\n".join([peaks, verdict, readings, scope, how])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="a clip with a face, best 720p H.264")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0, help="length of the long file")
    parser.add_argument("--stages", default=",".join(STAGES), help="observe and fit always run")
    parser.add_argument("--real", action="store_true", help="replace nothing")
    parser.add_argument("--small", action="store_true", help="180 lines, a coarse mesh, everything drawn and written")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    stages = args.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; choose from {', '.join(STAGES)}")
    if args.child is not None:
        return child(args.clip, args.out, stages, args.child, args.small)
    args.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="memory_", dir=args.out))
    facts: dict[str, Any] = {"minutes": args.minutes, "stages": stages, "real": args.real, "small": args.small}
    for name, seconds in (("short", min(SHORT_SECONDS, 60 * args.minutes)), ("long", 60 * args.minutes)):
        looped = scratch / f"{name}.mp4"
        frames = loop_clip(args.clip, looped, seconds, SMALL_HEIGHT if args.small else 720)
        facts[name] = measure(looped, scratch / f"{name}_run", stages, 0 if args.real else frames, args.small)
    shutil.rmtree(scratch)
    from report import save

    save(args.out, "memory", facts, markdown(facts))


if __name__ == "__main__":
    main()
