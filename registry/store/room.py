"""Disks that are full: how an error is known to say so, and where."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)  # without inodes it is ENOSPC as well
NO_ROOM = "free some space or files on that disk, for example by `reccocktail store gc`"


def lacks_room(error: BaseException | None) -> bool:
    """Whether a full disk is the reason, also where a library has put it into its own error's words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if not isinstance(error, OSError) and any(os.strerror(code) in str(error) for code in FULL):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


@contextmanager
def room_in(place: Path) -> Iterator[None]:
    """Names the folder where a full disk's error names no file. Raises OSError."""
    try:
        yield
    except StoreError:  # names its own folder
        raise
    except Exception as error:
        if not lacks_room(error) or (isinstance(error, OSError) and error.filename is not None):
            raise
        code = error.errno if isinstance(error, OSError) and error.errno else errno.ENOSPC
        raise OSError(code, os.strerror(code), str(place)) from error
