"""What the api's user tells the launcher in files of its own directory: short words, read without trust.

The launcher is root and the directory is not: a name in it may have become a link, a pipe, or something endless.
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

_MOST_BYTES: Final = 256
_URL: Final = re.compile(r"https?://([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9a-f:.]{2,45}\]):[0-9]{1,5}")
_KEY: Final = re.compile(r"sandlot_[a-z2-7]{39}")


class UntoldError(Exception):
    """There is no such file, or it does not say what it should."""


def url(path: Path) -> str:
    """Return the address the api listens on."""
    return _word(path, _URL)


def key(path: Path) -> str:
    """Return the root key."""
    return _word(path, _KEY)


def _word(path: Path, pattern: re.Pattern[str]) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UntoldError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UntoldError(f"{path} is no plain file")
        word = os.pread(descriptor, _MOST_BYTES, 0).decode(errors="replace").strip()
    finally:
        os.close(descriptor)
    if pattern.fullmatch(word) is None:
        # Not repeated: through a hard link it may be anybody's.
        raise UntoldError(f"{path} does not say what it should")
    return word
