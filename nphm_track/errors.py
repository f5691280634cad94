"""Errors the toolkit raises on purpose, each with the exit code the command line ends with.

Exit codes: 0 done, 1 a bug, 2 unusable input or arguments, 3 no face found, 4 a model file is missing or damaged,
5 the output could not be written, 6 takes of a session failed while the rest is done; 130 interrupted by the user,
143 by SIGTERM and 129 by SIGHUP.
"""

import errno
import signal

UNWRITABLE = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
})  # fmt: skip
"""What the system says when a file cannot be written, whichever it is."""
END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a process to end."""
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class NphmTrackError(Exception):
    """Base of every expected error; the message is one clear line for the user."""

    exit_code = 1


class InputError(NphmTrackError):
    """The input file, folder or option cannot be used."""

    exit_code = 2


class InputChangedError(InputError):
    """The input is not what it was when it was first read."""


class NoFaceError(NphmTrackError):
    """The input was read to its end and holds no face."""

    exit_code = 3


class ModelError(NphmTrackError):
    """A model file is missing, damaged or of another architecture."""

    exit_code = 4


class OutputError(NphmTrackError):
    """The output folder cannot be written (no permission, disk full, belongs to another input)."""

    exit_code = 5


class TakesFailedError(NphmTrackError):
    """A session is at its end, and some of its takes failed."""

    exit_code = 6
