# SPDX-License-Identifier: Apache-2.0
"""Errors of memd: one class per code of base/error.h, so that callers write `except memd.BusyError`.

The numbers are part of the protocol and never change; tests/python/test_algebra.py compares this list
with the C header. A code that this version does not know is a plain `Error`.
"""
from __future__ import annotations


class Error(Exception):
    """Anything that went wrong in memd. `code` is the number on the wire, `name` its symbol."""

    code: int = 0
    name: str = "MEMD_E?"

    def __init__(self, text: str, code: int | None = None):
        super().__init__(text)
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.name}]"


class InvalidError(Error):
    """A value is missing or out of range."""
    code, name = -1, "MEMD_EINVAL"


class ShapeError(Error):
    """Shape, count or dtype does not fit the model."""
    code, name = -2, "MEMD_ESHAPE"


class PositionError(Error):
    """Tokens do not continue what is stored, or differ from what is stored there."""
    code, name = -3, "MEMD_EPOSITION"


class NonFiniteError(Error):
    """NaN or infinity in keys, values or queries."""
    code, name = -4, "MEMD_ENONFINITE"


class NoContextError(Error):
    """There is no such context."""
    code, name = -5, "MEMD_ENOCONTEXT"


class ExistsError(Error):
    """The context exists already."""
    code, name = -6, "MEMD_EEXIST"


class MismatchError(Error):
    """The model or method differs from the stored one."""
    code, name = -7, "MEMD_EMISMATCH"


class NoRowError(Error):
    """The row is not stored."""
    code, name = -8, "MEMD_ENOROW"


class ProtocolError(Error):
    """A malformed frame or message."""
    code, name = -9, "MEMD_EPROTO"


class VersionError(Error):
    """The protocol or format version is not supported."""
    code, name = -10, "MEMD_EVERSION"


class UnsupportedError(Error):
    """This build, method or context cannot do that."""
    code, name = -11, "MEMD_EUNSUPPORTED"


class NotPermittedError(Error):
    """This client may not do that."""
    code, name = -12, "MEMD_EPERM"


class BusyError(Error):
    """Too much work at once; try again."""
    code, name = -13, "MEMD_EBUSY"


class LimitError(Error):
    """A limit was exceeded."""
    code, name = -14, "MEMD_ELIMIT"


class FullError(Error):
    """No space left: disk, map or byte budget."""
    code, name = -15, "MEMD_EFULL"


class OutOfMemoryError(Error):
    """The daemon is out of memory."""
    code, name = -16, "MEMD_ENOMEM"


class IoError(Error):
    """Input or output failed."""
    code, name = -17, "MEMD_EIO"


class CorruptError(Error):
    """Stored bytes do not match their checksum or header."""
    code, name = -18, "MEMD_ECORRUPT"


class DeadlineError(Error):
    """The answer was not ready in time."""
    code, name = -19, "MEMD_EDEADLINE"


class CancelledError(Error):
    """The request was cancelled."""
    code, name = -20, "MEMD_ECANCELLED"


class DrainingError(Error):
    """The daemon is draining and takes no new work."""
    code, name = -21, "MEMD_EDRAINING"


class ClosedError(Error):
    """The connection is closed and could not be made again in time."""
    code, name = -22, "MEMD_ECLOSED"


class LockedError(Error):
    """The data directory is in use by another daemon."""
    code, name = -23, "MEMD_ELOCKED"


class DeviceError(Error):
    """The accelerator failed."""
    code, name = -24, "MEMD_EDEVICE"


BY_CODE: dict[int, type[Error]] = {kind.code: kind for kind in Error.__subclasses__()}
__all__ = ["Error", *(kind.__name__ for kind in Error.__subclasses__())]


def error_from_code(code: int, text: str) -> Error:
    """The exception for a code from the wire."""
    kind = BY_CODE.get(code)
    return kind(text) if kind is not None else Error(text, code)
