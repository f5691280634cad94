"""What is around a run in ``fault_scenarios``: side files, models, options, the user's own files, the machine.

Each table maps a name to a scenario, which says what is wrong, or nothing. Those that need a machine of their own (a
locale, limits, another user) start the program anew; the others call it in this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nphm_track.cli import main

FAST = ("--codes", "landmarks", "--mesh-resolution", "32", "-q")
Variables = Mapping[str, str | None]
"""Environment variables; one that is None is taken out."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, and what it said at last; ``crashed`` when an error was not foreseen."""

    code: int
    line: str
    crashed: bool = False

    def unless(self, *codes: int) -> str:
        """What is wrong, if the command should have ended with one of ``codes``."""
        return "" if self.code in codes and not self.crashed else f"{self.code} {self.line}"


def call(*arguments: object) -> Ending:
    """``nphm-track`` with these arguments, in this process."""
    said = io.StringIO()
    before, sys.argv = sys.argv, ["nphm-track", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
        code, crashed = 0, False
    except SystemExit as end:
        code, crashed = int(end.code or 0), False
    except Exception:
        code, crashed = 1, True
        said.write(traceback.format_exc())
    finally:
        sys.argv = before
    return Ending(code, (said.getvalue().strip().splitlines() or [""])[-1], crashed)


def start(
    *arguments: object, variables: dict[str, str | None] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """The program in a process of its own; a variable that is None is taken out of its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name, value in (variables or {}).items():
        environment.pop(name, None)
        environment |= {} if value is None else {name: value}
    command = [sys.executable, "-m", "nphm_track", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, **options)


def ended(process: subprocess.Popen[bytes], seconds: float = 300.0) -> Ending:
    """Waits for a process that ``start`` began."""
    try:
        said = process.communicate(timeout=seconds)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()
        return Ending(-9, f"still at work after {seconds:g} s", crashed=True)
    line = (said.strip().splitlines() or [""])[-1]
    return Ending(process.returncode, line, crashed="Traceback" in said or process.returncode < 0)


@dataclass
class Place:
    """Where a scenario happens: a folder of its own, a clip and a whole run of it."""

    folder: Path
    clip: Path
    whole: Path

    def run(self) -> Path:
        """A copy of the run."""
        return Path(shutil.copytree(self.whole, self.folder / "run"))

    def track(self, output: Path | None = None, *options: object) -> Ending:
        return call(self.clip, "-o", output or self.folder / "run", *FAST, *options)

    def started(self, *options: object, clip: Path | None = None, **how: Any) -> Ending:
        """Tracks the clip in a process of its own."""
        return ended(start(clip or self.clip, "-o", self.folder / "run", *FAST, *options, **how))


Scenario = Callable[[Place], str]
"""Returns what is wrong, an empty text when nothing is."""


# Side files and options that hold what no camera, person or model has


def given(option: str, name: str, content: bytes | Callable[[Path], object], code: int = 2) -> Scenario:
    def scenario(place: Place) -> str:
        path = place.folder / name
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
        wrong = place.track(None, option, path).unless(code)
        record = place.folder / "run/run.json"
        return wrong + "nothing is recorded" * (record.parent.exists() and '"failed"' not in record.read_text())

    return scenario


def said(*options: object) -> Scenario:
    return lambda place: place.track(None, *options).unless(0, 2)


def claims(shape: str) -> Callable[[Path], None]:
    """An .npz whose z_id claims a shape that it does not hold."""

    def write(path: Path) -> None:
        import zipfile

        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("z_id.npy", array)

    return write


def model(config: bytes | None = None, change: Callable[[bytearray], None] | None = None) -> Callable[[Path], None]:
    """The released head model with another configuration, or with changed bytes."""

    def write(path: Path) -> None:
        whole = (ROOT / "models/nphm-small/model.safetensors").read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        header = json.loads(whole[8 : 8 + length])
        if config is not None:
            header["__metadata__"]["config"] = config.decode()
        text = json.dumps(header).encode()
        body = bytearray(whole[8 + length :])
        if change is not None:
            change(body)
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)

    return write


def half_nan(body: bytearray) -> None:
    body[len(body) // 2 :] = b"\xff" * (len(body) - len(body) // 2)


def zero_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def flipped_bit(place: Place) -> str:
    """A bit of each released model that is flipped."""
    folder = shutil.copytree(ROOT / "models", place.folder / "models")
    wrong = []
    for weights in sorted(folder.glob("*/model.safetensors")):
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 16
        weights.write_bytes(content)
    ending = place.started(variables={"NPHM_TRACK_MODELS": str(folder)})
    wrong.append(ending.unless(4))
    listed = ended(start("models", "verify", variables={"NPHM_TRACK_MODELS": str(folder)}))
    return "; ".join(filter(None, [*wrong, listed.unless(4)]))


SIDE_FILES: dict[str, Scenario] = {
    "intrinsics nested deep": given("--intrinsics", "k.json", b"[" * 200_000),
    "intrinsics of an endless width": given("--intrinsics", "k.json", b'{"width": Infinity, "fl_x": 9, "fl_y": 9}'),
    "intrinsics with 400 digits": given("--intrinsics", "k.json", b'{"width": ' + b"9" * 400 + b"}"),
    "intrinsics of empty lines": given("--intrinsics", "k.yaml", b"%YAML:1.0\n" + b"\n" * 200_000),
    "intrinsics that never end": given("--intrinsics", "k.json", zero_device),
    "intrinsics in another resolution": given(
        "--intrinsics", "k.json", b'{"w": 4000, "h": 500, "fl_x": 3000, "fl_y": 3000, "cx": 2000, "cy": 250}'
    ),
    "an identity that claims 10^13 numbers": given("--identity", "z.npz", claims("(10000000000000,)")),
    "an identity of another length": given("--identity", "z.npz", lambda path: np.savez(path, z_id=np.zeros(3))),
    "an identity with NaN": given("--identity", "z.npz", lambda path: np.savez(path, z_id=np.full(992, np.nan))),
    "an identity of text": given("--identity", "z.json", b'{"z_id": "anna"}'),
    "an identity that is a folder of photographs": given("--identity", "z", Path.mkdir),
    "a head model's configuration is a list": given("--head-model", "m.safetensors", model(b"[]"), 4),
    "a head model's configuration nested deep": given("--head-model", "m.safetensors", model(b"[" * 100_000), 4),
    "a head model half NaN": given("--head-model", "m.safetensors", model(change=half_nan), 4),
    "a head model that is a picture": given(
        "--head-model", "m.safetensors", lambda path: Image.new("RGB", (9, 9)).save(path, format="PNG"), 4
    ),
    "released models with a flipped bit each": flipped_bit,
    "every 10^20": said("--mesh-every", "99999999999999999999"),
    "focal length 1e-300": said("--focal", "1e-300"),
    "focal length 1e300": said("--focal", "1e300"),
    "focal length NaN": said("--focal", "nan"),
    "the end before the start": said("--start", "2", "--end", "1"),
    "a start after the clip": said("--start", "1e12"),
    "a face beside the picture": said("--face-at", "1e9,-4"),
}


# Scans


PLY = "ply\nformat ascii 1.0\nelement vertex 4\n{}element face 1\nproperty list uchar int vertex_indices\nend_header\n"
XYZ = "property float x\nproperty float y\nproperty float z\n"


def scan(text: str, code: int = 2) -> Scenario:
    def scenario(place: Place) -> str:
        path = place.folder / "scan.ply"
        path.write_text(text)
        return call("fit-scan", path, "-o", place.folder / "out").unless(code, 3)

    return scenario


SCANS: dict[str, Scenario] = {
    "a face names vertex 9 of 4": scan(PLY.format(XYZ) + "0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 9\n"),
    "a face names vertex -1": scan(PLY.format(XYZ) + "0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 -1\n"),
    "no positions": scan(PLY.format("") + "\n\n\n\n3 0 1 2\n"),
    "positions that are NaN": scan(PLY.format(XYZ) + "nan 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n"),
    "10^12 vertices": scan((PLY.format(XYZ)).replace("vertex 4", "vertex 1000000000000")),
    "cut short": scan(PLY.format(XYZ) + "0 0 0\n1 0"),
    "a point": scan(PLY.format(XYZ) + "0 0 0\n" * 4 + "3 0 0 0\n"),
}


# What belongs to the user


def kept(*command: object, name: str, code: int) -> Scenario:
    """A command on a run beside a file ``name`` of the user's, which must stay as it is."""

    def scenario(place: Place) -> str:
        path = place.run()
        mine = place.folder / name
        if mine.suffix:
            mine.write_bytes(b"mine")
        else:
            mine.mkdir()
            (mine / "photo.png").write_bytes(b"mine")
        ending = call(command[0], path, *(place.folder / c if isinstance(c, Path) else c for c in command[1:]))
        file = mine / "photo.png" if mine.is_dir() else mine
        whole = file.exists() and file.read_bytes() == b"mine"
        return ending.unless(code) + " the user's file is gone" * (not whole)

    return scenario


def source_kept(place: Place) -> str:
    path = place.run()
    before = place.clip.read_bytes()
    wrong = [call("render-overlay", path, "-o", place.clip).unless(2, 5)]
    wrong.append("the clip has changed" * (place.clip.read_bytes() != before))
    return " ".join(filter(None, wrong))


EXPORT = ("export", "-f", "landmarks")
USERS: dict[str, Scenario] = {
    "render-overlay over the clip": source_kept,
    "render-overlay over another film": kept("render-overlay", "-o", Path("w.mp4"), name="w.mp4", code=5),
    "render-overlay beside w.partial.mp4": kept("render-overlay", "-o", Path("w.mp4"), name="w.partial.mp4", code=0),
    "a report over another page": kept("report", "-o", Path("page.html"), name="page.html", code=5),
    "an export over a file": kept(*EXPORT, "-o", Path("e.csv"), name="e.csv", code=5),
    "an export over a folder": kept("export", "-f", "obj", "-o", Path("e"), name="e", code=5),
    "an export over a folder, --overwrite": kept(
        "export", "-f", "obj", "--overwrite", "-o", Path("e"), name="e", code=5
    ),
    "an export beside e.old": kept("export", "-f", "obj", "-o", Path("e"), name="e.old", code=0),
    "an export beside e.partial": kept("export", "-f", "obj", "-o", Path("e"), name="e.partial", code=0),
}


def twice(*command: object, made: str) -> Scenario:
    """Two of the same command at once: both end well or one is refused, and what is made is what one makes alone."""

    def scenario(place: Place) -> str:
        path = place.run()
        both = [start(command[0], path, *command[1:]) for _ in range(2)]
        endings = [ended(process) for process in both]
        wrong = [ending.unless(0, 5) for ending in endings]
        wrong += ["both are refused"] if all(ending.code for ending in endings) else []
        wrong += [] if (path / made).exists() else [f"no {made}"]
        wrong += [f"{left.name} is left" for left in path.rglob("*.partial*")]
        wrong.append(call("doctor", path).unless(0))
        return "; ".join(filter(None, wrong))

    return scenario


CONCURRENT: dict[str, Scenario] = {
    "render-overlay": twice("render-overlay", "--style", "mesh", made="overlay.mp4"),
    "export obj": twice("export", "-f", "obj", made="export/obj"),
    "report": twice("report", made="report.html"),
}


# The machine: encodings, permissions, limits


def tracked(name: bytes | None = None, **variables: str | None) -> Scenario:
    """The clip is tracked and checked; ``name`` is the file's."""

    def scenario(place: Place) -> str:
        clip = place.clip
        if name is not None:
            clip = Path(os.fsdecode(os.fsencode(place.folder) + b"/" + name))
            shutil.copy(place.clip, clip)
        wrong = [place.started(clip=clip, variables=variables).unless(0)]
        wrong.append(ended(start("doctor", place.folder / "run", variables=variables)).unless(0))
        return "; ".join(filter(None, wrong))

    return scenario


def limited_file(place: Place) -> str:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    wrong = [place.started(preexec_fn=limit).unless(5), place.track().unless(0)]
    return "; ".join(filter(None, wrong))


def unreadable(place: Place) -> str:
    """A picture that another user may not read. Root reads everything, so the program becomes nobody."""
    if os.geteuid() != 0:
        return ""
    folder = place.folder / "images"
    folder.mkdir()
    for k in range(2):
        Image.new("RGB", (64, 48)).save(folder / f"{k}.png")
    (folder / "1.png").chmod(0)
    for path in (place.folder, *place.folder.parents):
        if path.stat().st_uid == 0 and path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o777)
    with contextlib.suppress(PermissionError):
        ending = place.started(clip=folder, user="nobody", variables={"HOME": "/nonexistent"})
        return ending.unless(2) + ("" if "read" in ending.line else f" {ending.line}")
    return ""


def bomb(place: Place) -> str:
    """A picture of 179 million grey pixels in 339 kB."""
    Image.fromarray(np.zeros((13_370, 13_370), dtype=np.uint16)).save(place.folder / "bomb.png")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    return place.started(clip=place.folder / "bomb.png", preexec_fn=limit).unless(2, 3)


def postscript(place: Place) -> str:
    """An EPS file that is called .png must start no program."""
    programs = place.folder / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {place.folder}/started\n")
    (programs / "gs").chmod(0o755)
    picture = place.folder / "evil.png"
    picture.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    ending = place.started(clip=picture, variables={"PATH": f"{programs}:{os.environ['PATH']}"})
    return ending.unless(2) + " a program was started" * (place.folder / "started").exists()


C_LOCALE: Variables = {"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
MACHINE: dict[str, Scenario] = {
    "a name that is not UTF-8": tracked(b"caf\xe9.mp4"),
    "the C locale": tracked("顔.mp4".encode(), **C_LOCALE),
    "output in cp1252": tracked("顔.mp4".encode(), PYTHONIOENCODING="cp1252"),
    "output in ASCII": tracked("顔.mp4".encode(), PYTHONIOENCODING="ascii"),
    "no home": tracked(HOME=None),
    "a home that is not there": tracked(HOME="/nonexistent"),
    "nowhere to cache": tracked(HOME="/nonexistent", NUMBA_CACHE_DIR="/proc/none"),
    "files of at most 60 kB": limited_file,
    "a picture that may not be read": unreadable,
    "a picture of 179 million pixels": bomb,
    "PostScript called .png": postscript,
}
