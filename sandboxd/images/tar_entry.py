"""One entry of an archive, as its headers describe it."""

from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """What an entry is; the words are for people."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    DIRECTORY = "directory"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    PIPE = "named pipe"


@dataclass(slots=True)
class Entry:
    """Names are bytes as they came."""

    name: bytes
    kind: Kind
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    """Bytes of the file, holes included."""
    xattrs: list[bytes] = field(default_factory=list[bytes])
    device: tuple[int, int] = (0, 0)
    """Of a device: 0:0 in a character device is what overlays mark a name with that is gone."""
    opaque: bool = False
    """An overlay's mark on a directory that hides what lower ones have in it."""
