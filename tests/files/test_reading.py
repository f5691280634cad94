from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nphm_track.errors import InputError, ModelError
from nphm_track.files.images import without_programs
from nphm_track.files.reading import Arrays, open_regular, parse_json, read_bytes, read_npy, reading
from nphm_track.scans.reading import read_scan
from nphm_track.video.reader import read_image


class TestReading:
    @pytest.mark.parametrize(
        "failure, line",
        [
            (KeyError("fx"), "a.json is not a calibration: fx is missing"),
            (ValueError("first\nsecond"), "a.json is not a calibration (first)"),
            (RecursionError("deep"), "a.json is not a calibration (it is nested too deeply)"),
            (MemoryError(), "a.json is not a calibration (it is too large)"),
            (PermissionError(13, "Permission denied"), "a.json cannot be read (Permission denied)"),
        ],
    )
    def test_failures_become_one_line(self, failure: Exception, line: str) -> None:
        with pytest.raises(InputError) as raised, reading("a.json", "a calibration"):
            raise failure
        assert str(raised.value) == line

    def test_the_kind_of_error_can_be_chosen_and_own_errors_pass(self) -> None:
        with pytest.raises(ModelError), reading("a", "a model", ModelError):
            raise ValueError
        with pytest.raises(InputError, match=r"^mine$"), reading("a", "a model", ModelError):
            raise InputError("mine")


class TestJson:
    @pytest.mark.parametrize("text", ["NaN", "[1, Infinity]", "1e999", "9" * 400, "[" * 200_000])
    def test_numbers_that_are_none_and_depth_are_refused(self, text: str) -> None:
        with pytest.raises((ValueError, RecursionError)):
            parse_json(text)

    def test_unknown_points_may_be_nan(self) -> None:
        assert np.isnan(parse_json("[NaN]", finite=False)[0])


class TestFiles:
    def test_a_large_file_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        with open(tmp_path / "large", "wb") as file:
            file.truncate(10 << 30)  # no blocks on disk
        with pytest.raises(ValueError, match="larger than 64 MB"):
            read_bytes(tmp_path / "large")

    @pytest.mark.skipif(sys.platform == "win32", reason="devices")
    def test_a_device_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no regular file"):
            open_regular("/dev/zero", 10)


class TestArrays:
    def test_what_numpy_writes_is_read(self, tmp_path: Path) -> None:
        values = {
            "a": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": np.array("word"), "c": np.zeros((0, 3)),
        }  # fmt: skip
        for write in (np.savez, np.savez_compressed):
            write(tmp_path / "file.npz", **values)
            with Arrays(tmp_path / "file.npz") as file:
                for name, value in values.items():
                    assert name in file
                    np.testing.assert_array_equal(file[name], value)
        np.save(tmp_path / "file.npy", values["a"])
        np.testing.assert_array_equal(read_npy(tmp_path / "file.npy"), values["a"])

    def test_a_header_that_claims_more_than_there_is_takes_no_memory(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive, archive.open("a.npy", "w") as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (10_000_000_000_000,)}
            )
        with Arrays(tmp_path / "file.npz") as file, pytest.raises(ValueError, match="claims 40000000000000 bytes"):
            file["a"]

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        np.save(tmp_path / "file.npy", np.array([print], object), allow_pickle=True)
        with pytest.raises(ValueError, match="no plain numbers"):
            read_npy(tmp_path / "file.npy")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


class TestImages:
    @pytest.fixture
    def no_programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def started(*args: object, **_: object) -> None:
            raise AssertionError(f"a program was started: {args}")

        monkeypatch.setattr(subprocess, "Popen", started)

    def test_postscript_called_png_starts_nothing(self, no_programs: None, tmp_path: Path) -> None:
        (tmp_path / "evil.png").write_bytes(EPS)
        with pytest.raises(InputError, match="not a readable image"):
            read_image(tmp_path / "evil.png")

    def test_postscript_as_the_texture_of_a_scan_starts_nothing(self, no_programs: None, tmp_path: Path) -> None:
        (tmp_path / "scan.obj").write_text("mtllib m\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n")
        (tmp_path / "m").write_text("newmtl m\nmap_Kd evil.png\n")
        (tmp_path / "evil.png").write_bytes(EPS)
        try:
            read_scan(tmp_path / "scan.obj")
        except InputError as error:
            assert str(error).count("\n") == 0
        with without_programs(), pytest.raises(OSError), Image.open(tmp_path / "evil.png") as image:
            image.load()

    def test_a_bomb_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("L", (200, 200)).save(tmp_path / "large.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        with pytest.raises(InputError, match="too large"):
            read_image(tmp_path / "large.png")

    def test_grey_of_16_bits_is_brought_to_8(self, tmp_path: Path) -> None:
        values = np.linspace(0, 65535, 300 * 4).reshape(300, 4).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "grey.png")
        want = np.floor(values.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)
        np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(want[..., None], 3, 2))


class TestScans:
    def test_a_face_of_a_vertex_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "scan.ply").write_text(
            "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
            "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
            "0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 9\n"
        )
        with pytest.raises(InputError, match=r"^scan.ply"):
            read_scan(tmp_path / "scan.ply")
