"""The exceptions of the package, one for each status of the library."""

from __future__ import annotations


class LockstepError(Exception):
    """A call failed. The text is the library's: which argument, at which index, and what to do.

    Outputs are untouched. Catch this one to catch them all; each kind is also the built-in
    exception a Python programmer expects.

    Attributes:
        status: the library's status code, ``LOCKSTEP_ERROR_…`` in ``lockstep.h``.
    """

    status: int = 0


class InvalidArgumentError(LockstepError, ValueError):
    """An argument is wrong: its shape, dtype, name, size, or a value out of range."""

    status = 1


class UnsupportedError(LockstepError, NotImplementedError):
    """The arguments are well formed, but this combination is not offered."""

    status = 2


class NonFiniteError(LockstepError, ValueError):
    """A value that counts is NaN or infinite where the result would be undefined."""

    status = 3


class OutOfMemoryError(LockstepError, MemoryError):
    """The library could not allocate what the call needs."""

    status = 4


class InternalError(LockstepError, RuntimeError):
    """A defect of the library: please report the message."""

    status = 5


class FileError(LockstepError, OSError):
    """The operating system refused a file: it is not there, locked, or the disk is full."""

    status = 6


class BadDataError(LockstepError, ValueError):
    """Bytes that were read are not what was written: damaged, cut off, or of another kind."""

    status = 7


_BY_STATUS = {
    kind.status: kind
    for kind in (
        InvalidArgumentError, UnsupportedError, NonFiniteError, OutOfMemoryError, InternalError, FileError,
        BadDataError,
    )
}


def error_of(status: int, text: str) -> LockstepError:
    """The exception for a status; a status this package does not know is an InternalError."""
    error = _BY_STATUS.get(status, InternalError)(text)
    error.status = status
    return error
