"""Opening a media file with PyAV, whichever of its versions is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

# Titles and comments that are not UTF-8 must not cost the video. Newer versions never fail over them and have dropped
# the option, which older ones need.
_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_container(path: str | Path) -> InputContainer:
    """A local media file opened for reading; raises av.FFmpegError, OSError or ValueError when it is none."""
    return av.open(f"file:{path}", **_TOLERANT)
