"""Files that the api's user may have put in place of others, opened by root without trust."""

import os
import stat
from pathlib import Path


class UntrustedError(Exception):
    """What is there is no plain file of that user's, or too large."""


def opened(path: Path, uid: int, most_bytes: int) -> int:
    """Open a plain file of the user `uid` for reading; the descriptor is the caller's.

    A link is not followed, a pipe not waited on, a file with a second name (it may be somebody else's) not read.
    UntrustedError; FileNotFoundError where there is nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UntrustedError(f"{path}: {error.strerror}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        wrong = "is no plain file"
    elif found.st_uid != uid or found.st_nlink != 1:
        wrong = "is not, or not only, the api user's own"
    elif found.st_size > most_bytes:
        wrong = f"is larger than {most_bytes} bytes"
    else:
        return descriptor
    os.close(descriptor)
    raise UntrustedError(f"{path} {wrong}")


def content(path: Path, uid: int, most_bytes: int) -> bytes:
    """Return all of a small plain file of the user `uid`. UntrustedError; FileNotFoundError."""
    descriptor = opened(path, uid, most_bytes)
    try:
        return os.pread(descriptor, most_bytes, 0)
    finally:
        os.close(descriptor)
