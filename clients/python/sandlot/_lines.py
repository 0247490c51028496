"""Reads streams of JSON lines, however they were cut on the way. Pure."""

import json
from collections.abc import Iterator
from typing import Any, Final

from sandlot.errors import ProtocolError
from sandlot.models import as_object

NDJSON: Final = "application/x-ndjson"
_LONGEST_LINE: Final = 1024 * 1024


class LineReader:
    """Turns bytes into objects. What is incomplete when a stream breaks is dropped with the reader."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        r"""Yield every object that `data` completes. ProtocolError if a line is none.

        >>> reader = LineReader()
        >>> list(reader.feed(b'{"a": 1}\n{"a"')), list(reader.feed(b': 2}\n'))
        ([{'a': 1}], [{'a': 2}])
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise ProtocolError(f"a line of more than {_LONGEST_LINE} bytes")
        for line in lines:
            if line.strip():
                yield parse_object(line)


def parse_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object of a stream. ProtocolError if it is none."""
    try:
        return as_object(json.loads(data))
    except ValueError as error:
        raise ProtocolError("a part of the stream is not JSON") from error
