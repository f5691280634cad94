from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nphm_track.files.names import PRINTABLE, path_of, plain, text_of

NOT_UTF8 = os.fsdecode(b"caf\xe9.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_every_name_comes_back_from_json(tmp_path: Path) -> None:
    for name in ("clip.mp4", "é顔 100%.mp4", NOT_UTF8):
        text = text_of(tmp_path / name)
        assert text.encode("utf-8").decode("utf-8") == text
        assert path_of(text) == tmp_path / name
    assert text_of(tmp_path / "é顔.mp4") == str(tmp_path / "é顔.mp4")
    assert text_of(tmp_path / NOT_UTF8).endswith("/caf%E9.mp4")


def test_messages_with_such_a_name_fit_any_file() -> None:
    assert plain(f"cannot read {NOT_UTF8} in 顔") == r"cannot read caf\xe9.mp4 in 顔"


@pytest.mark.parametrize(
    ("encoding", "want"),
    [("utf-8", "é顔".encode() + b"\xe9"), ("cp1252", b"\xe9\\u9854\xe9"), ("ascii", b"\\xe9\\u9854\xe9")],
)
def test_printing_a_name_fails_in_no_encoding(encoding: str, want: bytes) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors=PRINTABLE)
    stream.write("é顔\udce9")
    stream.flush()
    assert buffer.getvalue() == want


@pytest.mark.skipif(sys.platform == "win32", reason="locales")
def test_in_the_c_locale_a_name_is_written_as_everywhere(tmp_path: Path) -> None:
    code = "import sys; from nphm_track.files.names import *; sys.stdout.write(ascii(text_of(sys.argv[1])))"
    bare = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, "é顔.mp4"], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout == ascii("é顔.mp4")
