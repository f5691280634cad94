"""The command line as a user meets it; the pipeline is replaced, since what it does is tested in its own room."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from nphm_track.cli import main
from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import InputInfo
from nphm_track.tracking.run_folder import RunFolder

QUALITY = {"frames": 48, "tracked": 47, "filled": 0, "lost": 1, "landmark_error_px": 1.5, "landmark_error_percent": 2.0}


class Calls(list[dict[str, Any]]):
    """Arguments the replaced pipeline was called with; ``error`` is what it raises, if anything."""

    error: BaseException | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    seen = Calls()

    def track(input: Path, output: Path | None = None, **arguments: Any) -> Any:
        seen.append({"input": input, "output": output, **arguments})
        if seen.error:
            raise seen.error
        arguments["progress"].note("48 frames")
        arguments["progress"].stage("frames", 48)
        arguments["progress"].advance(48)
        info = InputInfo(path="clip.mp4", sha256="ab", size=1, width=64, height=48)
        folder = RunFolder.open(tmp_path / "run", info, TrackOptions(), overwrite=True)
        folder.track.touch()
        return folder.finish(quality=QUALITY, timings={"frames": 3.0, "overlay": 1.0})

    def render_overlay(run: Path, **arguments: Any) -> Path:
        seen.append({"run": run, **arguments})
        if seen.error:
            raise seen.error
        return run / "overlay.mp4"

    def train(recipe: Path, out: Path, *, resume: bool, overrides: list[str]) -> dict[str, float]:
        seen.append({"recipe": recipe, "out": out, "overrides": overrides, "resume": resume})
        return {"error": 0.5}

    stand_ins = {"tracker": track, "tracking.render": render_overlay, "training.cli": train}
    for name, function in stand_ins.items():
        module = types.ModuleType(f"nphm_track.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, leaf = module.__name__.rpartition(".")
        __import__(parent)
        monkeypatch.setattr(sys.modules[parent], leaf, module, raising=False)
    return seen


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nphm-track", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: invoke(monkeypatch, *arguments)


class TestTrack:
    def test_is_the_default_command(self, run_cli: Any, calls: Calls) -> None:
        assert run_cli("clip.mp4") == 0
        assert run_cli("track", "clip.mp4") == 0
        assert run_cli("--every", "3", "clip.mp4") == 0
        assert [call["input"] for call in calls] == [Path("clip.mp4")] * 3
        assert [call["options"].every for call in calls] == [1, 1, 3]
        assert calls[0]["options"] == TrackOptions()

    def test_file_called_like_a_command(self, run_cli: Any, calls: Calls) -> None:
        assert run_cli("./train") == 0
        assert calls[0]["input"] == Path("./train")

    def test_options_reach_the_pipeline(self, run_cli: Any, calls: Calls) -> None:
        given = "--start 1 --end 2.5 --face-at 320,180 --fov 40 --smooth 0 --no-meshes --style normals --side-by-side"
        assert run_cli("clip.mp4", "-o", "out", "--overwrite", *given.split()) == 0
        expected = TrackOptions(
            start=1, end=2.5, face_at=(320, 180), fov=40, smooth=0, meshes=False, style="normals", side_by_side=True
        )
        assert calls[0]["options"] == expected
        assert calls[0]["output"] == Path("out") and calls[0]["overwrite"]

    @pytest.mark.parametrize(
        "given",
        ["--every 0", "--smooth 2", "--face-at 3", "--face x@1", "--face 0@soon", "--style pink", "--end 1 --start 2"],
    )
    def test_bad_options_end_with_2(self, run_cli: Any, calls: Calls, given: str, capsys: Any) -> None:
        assert run_cli("clip.mp4", *given.split()) == 2
        assert not calls and capsys.readouterr().err

    @pytest.mark.parametrize(
        ("error", "code"), [(InputError("no video"), 2), (NoFaceError("no face"), 3), (OutputError("no room"), 5)]
    )
    def test_expected_errors_are_one_line(
        self, run_cli: Any, calls: Calls, error: Exception, code: int, capsys: Any
    ) -> None:
        calls.error = error
        assert run_cli("clip.mp4", "--quiet") == code
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"nphm-track: {error}\n")

    def test_full_disk_is_an_output_error(self, run_cli: Any, calls: Calls, capsys: Any) -> None:
        calls.error = OSError(28, "No space left on device", "meshes/000001.ply")
        assert run_cli("clip.mp4") == 5
        assert "cannot write meshes/000001.ply (No space left on device)" in capsys.readouterr().err

    def test_interruption_of_other_commands(self, run_cli: Any, calls: Calls) -> None:
        calls.error = KeyboardInterrupt()
        assert run_cli("render-overlay", "run") == 130

    def test_interruption_says_how_to_go_on(self, run_cli: Any, calls: Calls, capsys: Any) -> None:
        calls.error = KeyboardInterrupt()
        assert run_cli("clip.mp4") == 130
        assert "the same command goes on" in capsys.readouterr().err

    def test_bugs_keep_their_traceback(self, monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
        calls.error = ZeroDivisionError("a bug")
        monkeypatch.setattr(sys, "argv", ["nphm-track", "clip.mp4"])
        with pytest.raises(ZeroDivisionError):
            main()

    def test_json_is_alone_on_stdout(self, run_cli: Any, calls: Calls, capsys: Any) -> None:
        assert run_cli("clip.mp4", "--json") == 0
        out, err = capsys.readouterr()
        summary = json.loads(out)
        assert (summary["tracked"], summary["frames_per_second"]) == (47, 12.0)
        assert summary["outputs"] == ["track.npz"]
        assert "48 frames" in err

    @pytest.mark.parametrize(
        ("given", "error", "code"),
        [
            ((), NoFaceError("no face found"), 3),
            ((), KeyboardInterrupt(), 130),
            (("--bogus",), None, 2),
            (("--options", "gone.toml"), None, 2),
        ],
    )
    def test_failures_are_json_too(
        self, run_cli: Any, calls: Calls, capsys: Any, given: tuple[str, ...], error: BaseException | None, code: int
    ) -> None:
        calls.error = error
        assert run_cli("clip.mp4", "--json", *given) == code
        told = json.loads(capsys.readouterr().out)
        assert told["exit_code"] == code and told["error"]

    def test_options_come_from_a_file(self, run_cli: Any, calls: Calls, tmp_path: Path, capsys: Any) -> None:
        file = tmp_path / "options.toml"
        file.write_text('smooth = 0.5\nmesh-every = 3\nface_at = [320, 180]\nmeshes = false\nintrinsics = "k.json"\n')
        assert run_cli("clip.mp4", "--options", str(file), "--mesh-every", "2") == 0
        options = calls[0]["options"]
        assert (options.smooth, options.mesh_every, options.face_at, options.meshes) == (0.5, 2, (320, 180), False)
        assert options.intrinsics == tmp_path / "k.json"
        file.write_text("smoth = 0.5\n")
        assert run_cli("clip.mp4", "--options", str(file)) == 2
        assert "did you mean 'smooth'?" in capsys.readouterr().err

    def test_table(self, run_cli: Any, calls: Calls, capsys: Any) -> None:
        assert run_cli("clip.mp4") == 0
        out = capsys.readouterr().out
        for text in ("47 tracked, 0 filled in, 1 lost", "1.50 px, 2.00 %", "12.0 frames/s", "track.npz"):
            assert text in out


class TestOtherCommands:
    def test_render_overlay(self, run_cli: Any, calls: Calls) -> None:
        assert run_cli("render-overlay", "RUN", "--style", "wireframe", "--size", "2", "-o", "x.mp4", "-q") == 0
        call = calls[0]
        assert (call["run"], call["output"], call["style"], call["scale"]) == (
            Path("RUN"),
            Path("x.mp4"),
            "wireframe",
            2,
        )

    def test_train(self, run_cli: Any, calls: Calls) -> None:
        assert run_cli("train", "recipe.toml", "steps=5", "lr=1e-3", "--resume") == 0
        call = {"recipe": Path("recipe.toml"), "overrides": ["steps=5", "lr=1e-3"], "resume": True}
        assert calls == [{"out": Path("runs/recipe"), **call}]

    def test_misspelt_command(self, run_cli: Any, calls: Calls, capsys: Any) -> None:
        assert run_cli("render-overly", "RUN") == 2
        assert "did you mean 'render-overlay'" in capsys.readouterr().err
        assert not calls

    def test_doctor_refuses_what_is_no_run(self, run_cli: Any, tmp_path: Path, capsys: Any) -> None:
        assert run_cli("doctor", str(tmp_path)) == 2
        out, err = capsys.readouterr()
        assert "run.json" in out and "1 problem" in err

    def test_models_verify_finds_damage(
        self, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setenv("NPHM_TRACK_MODELS", str(tmp_path))
        entry = {
            "size": 3,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "licence": "MIT",
        }
        (tmp_path / "index.json").write_text(json.dumps({"head": entry}))
        (tmp_path / "head").mkdir()
        weights = tmp_path / "head" / "model.safetensors"
        weights.write_bytes(b"abc")
        assert run_cli("models", "verify") == 0
        weights.write_bytes(b"abd")
        assert run_cli("models", "verify") == 4
        assert "another SHA-256" in capsys.readouterr().out
        weights.unlink()
        assert run_cli("models", "verify") == 4


def test_start_up_loads_nothing_heavy() -> None:
    heavy = ("torch", "numba", "av", "numpy", "trimesh")
    code = f"import sys, nphm_track.cli.app; print(*set({heavy}) & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""
