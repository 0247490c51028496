"""Short questions to a running node agent, asked by root."""

import http.client
import socket
import struct
from pathlib import Path
from typing import Final

_CREDENTIALS: Final = struct.Struct("3i")


class NodeSilentError(Exception):
    """No node agent of root's answers, or not with what was asked for."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("node", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
        raw = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        # While no node agent runs, the api's user may put a socket of its own in its place.
        if _CREDENTIALS.unpack(raw)[1] != 0:
            raise OSError("whoever listens there is not root")


def ask(path: Path, target: str, *, most_bytes: int, seconds: float = 30) -> bytes:
    """Return the body of the answer to `GET target`. NodeSilentError."""
    connection = _Connection(path, seconds)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read(most_bytes + 1)
    except (OSError, http.client.HTTPException) as error:
        raise NodeSilentError(f"{path}: {error}") from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK or len(body) > most_bytes:
        raise NodeSilentError(f"{path}: the answer to {target} was {answer.status}, {len(body)} bytes")
    return body
