"""What is done to files in ``fault_scenarios``: each table maps a name to a damage, and what must come of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nphm_track.locking import Owner, RunLock
from nphm_track.tracking.records import RunInfo, Track
from nphm_track.tracking.run_folder import Run

Damage = Callable[[Path], object]


def edited(**values: Any) -> Damage:
    """Changes fields of run.json; ``a__b`` is field b of a."""

    def edit(path: Path) -> None:
        record = json.loads((path / "run.json").read_text())
        for name, value in values.items():
            *outer, last = name.split("__")
            inner = record
            for part in outer:
                inner = inner[part]
            inner[last] = value
        (path / "run.json").write_text(json.dumps(record))

    return edit


def written(name: str, content: bytes) -> Damage:
    return lambda path: (path / name).write_bytes(content)


def cut(name: str, share: float) -> Damage:
    return lambda path: os.truncate(path / name, int(share * (path / name).stat().st_size))


RUN_JSON: dict[str, Damage] = {
    "empty": written("run.json", b""),
    "zeros": written("run.json", bytes(3000)),
    "cut short": cut("run.json", 0.7),
    "a list": written("run.json", b"[]"),
    "nested deep": written("run.json", b"[" * 200_000),
    "no text": written("run.json", b"\xff\xfe\x00" * 99),
    "another schema": edited(schema_version=2),
    "an unknown field": edited(colour="red"),
    "an unknown state": edited(state="perhaps"),
    "still running": edited(state="running"),
    "failed": edited(state="failed", message="no face"),
    "no options": edited(options={}),
    "options are a list": edited(options=[]),
    "every is a word": edited(options__every="often"),
    "every is 0": edited(options__every=0),
    "start is infinite": edited(options__start=float("inf")),
    "meshes is a list": edited(options__meshes=[1, 2]),
    "reader is another": edited(options__reader="vlc"),
    "no size": edited(input__width=0),
    "a negative size": edited(input__height=-5),
    "a giant size": edited(input__width=10**9, input__height=10**9),
    "another size": edited(input__width=161),
    "no input": edited(input=None),
    "an input of another kind": edited(input__kind="hologram"),
    "counts that differ": edited(quality__tracked=99),
    "no counts": edited(quality={}),
}


def as_folder(name: str) -> Damage:
    def change(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return change


def changed(**values: Callable[[np.ndarray], Any]) -> Damage:
    """Changes arrays of track.npz."""

    def change(path: Path) -> None:
        track = Run(path, RunInfo.load(path / "run.json")).track
        arrays = {name: np.array(value) for name, value in vars(track).items()}
        for name, function in values.items():
            arrays[name] = np.asarray(function(arrays[name]))
        Track(**arrays).save(path / "track.npz")

    return change


def with_nan(array: np.ndarray) -> np.ndarray:
    array.reshape(-1)[0] = np.nan
    return array


TRACK_NPZ: dict[str, Damage] = {
    "missing": lambda path: (path / "track.npz").unlink(),
    "a folder": as_folder("track.npz"),
    "empty": written("track.npz", b""),
    "zeros": written("track.npz", bytes(3000)),
    "cut short": cut("track.npz", 0.5),
    "a pickle": lambda path: np.save(open(path / "track.npz", "wb"), np.array([{}]), allow_pickle=True),  # noqa: SIM115
    "rotations of two rows": changed(R=lambda R: R[:, :2, :2]),
    "rotations that scale": changed(R=lambda R: 2 * R),
    "rotations that mirror": changed(R=lambda R: -R),
    "rotations with NaN": changed(R=with_nan),
    "heads behind the camera": changed(t=lambda t: -t),
    "positions as text": changed(t=lambda t: t.astype(str)),
    "positions with NaN": changed(t=with_nan),
    "fewer expressions": changed(z_ex=lambda z: z[:-1]),
    "an endless identity": changed(z_id=lambda z: z * np.inf),
    "a status that is none": changed(status=lambda s: s + 7),
    "a status in fractions": changed(status=lambda s: s.astype(float)),
    "frames backwards": changed(frame=lambda f: f[::-1]),
    "one frame for all": changed(frame=lambda f: np.int64(3)),
    "no frames": changed(frame=lambda f: f[:0]),
    "time stands still": changed(time=lambda t: 0 * t),
    "time is NaN": changed(time=with_nan),
    "a giant picture": changed(image_size=lambda s: s * 10**6),
    "no picture": changed(image_size=lambda s: s * 0),
    "focal length 0": changed(K=lambda K: K * [[0], [0], [1]]),
    "no camera": changed(K=lambda K: K[:2]),
    "landmarks of 68": changed(landmarks=lambda x: x[:, :68]),
    "no lens": changed(distortion=lambda d: d[:2]),
}


def save_picture(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    Image.new("RGB", size, "grey").save(path)


IMAGES: dict[str, Damage] = {
    "a folder": Path.mkdir,
    "a broken link": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to the folder": lambda path: path.symlink_to("."),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "an empty file": Path.touch,
    "text": lambda path: path.write_text("no picture"),
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
    "another size": lambda path: save_picture(path, (32, 32)),
}


LISTS: dict[str, str | bytes] = {
    "an empty list": "[]",
    "no list": "{}",
    "nested deep": "[" * 200_000,
    "no text": b"\xff\xfe\x00",
    "a number for a take": "[3]",
    "no input": '[{"person": "anna"}]',
    "an input that is a number": '[{"input": 3}]',
    "an input twice": '[{"input": "a.mp4"}, {"input": "./a.mp4"}]',
    "an unknown column": '[{"input": "a.mp4", "colour": "red"}]',
    "a person that leads out": '[{"input": "a.mp4", "person": "../x"}]',
    "a name with a line in it": '[{"input": "a.mp4", "name": "x\\ny"}]',
    "an option out of range": '[{"input": "a.mp4", "every": 0}]',
}


def record(**changes: Any) -> Damage:
    return lambda path: path.write_text(json.dumps(asdict(replace(Owner.this_process(), **changes))))


LOCKS: dict[str, tuple[Any, ...]] = {
    "of this process": (lambda path: RunLock(path, "the run").acquire(), 5),
    "of this process, broken": (lambda path: RunLock(path, "the run").acquire(), 0, "--break-lock"),
    "of a process that has ended": (record(pid=2**22 + 1), 0),
    "of a number that is another process's now": (record(started=1), 0),
    "of another machine that is silent": (record(machine="another", host="node-17"), 0),
    "of a container of the same host name": (record(machine="another"), 0),
    "empty": (Path.touch, 0),
    "torn": (lambda path: path.write_text('{"token": "ab'), 0),
    "zeros": (lambda path: path.write_bytes(bytes(200)), 0),
    "of an earlier version": (lambda path: path.write_text('{"pid": 1, "host": "x", "boot": "y"}'), 0),
    "nested deep": (lambda path: path.write_text("[" * 100_000), 0),
}


def folder_with(name: str, content: str = "mine") -> Damage:
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_text(content)

    return make


OUTPUT: dict[str, tuple[Damage, int]] = {
    "a file": (lambda path: path.write_text("mine"), 5),
    "a folder of other things": (folder_with("photo.png"), 5),
    "a folder with a track.npz of its own": (folder_with("track.npz"), 5),
    "a run.json that is none": (folder_with("run.json", "{}"), 5),
    "a link to nothing": (lambda path: path.symlink_to("gone/away"), 5),
    "a pipe": (os.mkfifo, 5),
    "in a file": (lambda path: path.symlink_to("/dev/null/run"), 5),
}


def without(name: str) -> Damage:
    return lambda path: shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()


def also(name: str) -> Damage:
    def make(path: Path) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("left by a process that was killed")

    return make


FILES: dict[str, Damage] = {
    "no report": without("report.html"),
    "half a report": cut("report.html", 0.5),
    "an empty report": written("report.html", b""),
    "no transforms": without("transforms.json"),
    "zeros for transforms": written("transforms.json", bytes(500)),
    "no overlay": without("overlay.mp4"),
    "half an overlay": cut("overlay.mp4", 0.5),
    "zeros for an overlay": written("overlay.mp4", bytes(5000)),
    "no meshes": without("meshes"),
    "no first mesh": without("meshes/000000.ply"),
    "an empty mesh": written("meshes/000001.ply", b""),
    "no neutral head": without("canonical.ply"),
    "half a neutral head": cut("canonical.ply", 0.5),
    "no track": without("track.npz"),
    "half a track": cut("track.npz", 0.5),
    "zeros for a track": written("track.npz", bytes(9000)),
    "work that was not removed": also("work/observations.bin"),
    "a lock draft": also("run.lock.ab12cd34.new"),
}
