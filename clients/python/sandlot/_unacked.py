"""What was written to a process and is not yet known to have arrived. Pure."""

from typing import Final

from sandlot.errors import ProtocolError

WINDOW_BYTES: Final = 1024 * 1024
"""The server takes no more than this beyond what it has acknowledged."""


class Unacked:
    """The end of an input: from the first byte the server may lack, to the last one written.

    >>> unacked = Unacked(0)
    >>> unacked.add(b"hello"), unacked.acknowledge(2), unacked.rest()
    (0, None, (2, b'llo'))
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._data = bytearray()
        self.is_closed = False
        """Nothing will be added any more: the end is part of the input."""

    @property
    def end(self) -> int:
        """The offset of the next byte to be written."""
        return self._offset + len(self._data)

    @property
    def room(self) -> int:
        """How many bytes may be added now."""
        return WINDOW_BYTES - len(self._data)

    def add(self, data: bytes) -> int:
        """Keep `data` until it is acknowledged, and return the offset of its first byte."""
        offset = self.end
        self._data += data
        return offset

    def acknowledge(self, offset: int) -> None:
        """Forget what came before `offset`. ProtocolError for one that was never reached."""
        if offset > self.end:
            raise ProtocolError(f"input was acknowledged up to {offset}, but ends at {self.end}")
        if offset > self._offset:
            del self._data[: offset - self._offset]
            self._offset = offset

    def join(self, offset: int) -> None:
        """Go on where the server says its input stands; another writer may have been there."""
        if offset < self._offset:
            raise ProtocolError(f"input was acknowledged up to {self._offset}, now only up to {offset}")
        if offset > self.end:
            self._offset, self._data = offset, bytearray()
        self.acknowledge(offset)

    def rest(self) -> tuple[int, bytes]:
        """Return the offset and the bytes to send again."""
        return self._offset, bytes(self._data)
