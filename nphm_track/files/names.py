"""Names of files as text, for JSON and for people: in UTF-8 whatever the locale, and also where a name is no text."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

_URI = "file://"


def text_of(path: str | Path) -> str:
    """How a path is written into a file: as it is, or where it is not UTF-8 as a file URI (``file:///a/caf%E9.mp4``)."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return Path(path).absolute().as_uri()


def path_of(text: str) -> Path:
    """The path that ``text_of`` wrote."""
    data = unquote_to_bytes(text.removeprefix(_URI)) if text.startswith(_URI) else text.encode("utf-8")
    return Path(os.fsdecode(data))


def plain(text: str) -> str:
    """Text with names in it, fit for any file: bytes that are no UTF-8 are spelt out, as in ``caf\\xe9.mp4``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _printable(error: UnicodeError) -> tuple[bytes, int]:
    """For output in any encoding: the bytes of names as they are, as ``ls`` prints them; other signs spelt out."""
    assert isinstance(error, UnicodeEncodeError)
    sign, after = error.object[error.start], error.start + 1
    try:
        return sign.encode("ascii", "surrogateescape"), after
    except UnicodeEncodeError:
        return sign.encode("ascii", "backslashreplace"), after


PRINTABLE = "nphm_track.printable"
"""An error handler for streams that are printed to: none of them fails over a name."""
codecs.register_error(PRINTABLE, _printable)
