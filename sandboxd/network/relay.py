"""Takes the programs' questions to the node's own resolvers, unread, and brings the answers back.

The programs live where no resolver of the host can be reached, a loopback one least of all, and must not be able to
send what they like: here a question goes to the configured servers, from a fresh port each, and nowhere else. What a
server cuts short is asked once more over TCP.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_TAG_BYTES: Final = 4
_QUESTION_BYTES: Final = 512
_ANSWER_BYTES: Final = 4096
_AT_ONCE: Final = 512
_SERVER_SECONDS: Final = 2.0
_ROUNDS: Final = 2
_PORT: Final = 53
_SERVERS: Final = 3
RESOLV_CONF: Final = Path("/etc/resolv.conf")

_HEADER_BYTES: Final = 12
_TRUNCATED: Final = 0x02

OpenSocket = Callable[[socket.SocketKind], socket.socket]
"""Makes a UDP or TCP socket in the host's namespace; runs in a thread if that is not the program's own."""

_Way = Callable[[socket.socket, bytes], Awaitable[bytes]]


class Relay:
    """The way to the node's resolvers, for any number of programs."""

    def __init__(self, servers: Callable[[], list[str]], open_socket: OpenSocket, *, port: int = _PORT) -> None:
        self._servers = servers
        self._open_socket = open_socket
        self._port = port

    @asynccontextmanager
    async def between(self, end: socket.socket) -> AsyncGenerator[None]:
        """Serve a program's end of a sequenced-packet pair while inside."""
        end.setblocking(False)  # noqa: FBT003 - its only parameter
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._serve(end))
            try:
                yield
            finally:
                task.cancel()

    async def _serve(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as questions:
            while True:
                try:
                    data = await loop.sock_recv(end, _TAG_BYTES + _QUESTION_BYTES + 1)
                except OSError:
                    return
                if not data:
                    return
                if _TAG_BYTES < len(data) <= _TAG_BYTES + _QUESTION_BYTES:
                    await room.acquire()
                    asked = questions.create_task(self._ask(end, data[:_TAG_BYTES], data[_TAG_BYTES:]))
                    asked.add_done_callback(lambda _: room.release())

    async def _ask(self, end: socket.socket, tag: bytes, question: bytes) -> None:
        answer = b""
        for server in self._servers()[:_SERVERS] * _ROUNDS:
            answer = await self._answer(server, question)
            if answer:
                break
        try:
            await asyncio.get_running_loop().sock_sendall(end, tag + answer)
        except OSError:
            return  # it has ended

    async def _answer(self, server: str, question: bytes) -> bytes:
        """Return what one server says; of an answer that is cut short the rest too, if that can be had in bounds."""
        answer = await self._asked(server, question, socket.SOCK_DGRAM, self._by_datagram)
        if len(answer) < _HEADER_BYTES or not answer[2] & _TRUNCATED:
            return answer
        return await self._asked(server, question, socket.SOCK_STREAM, self._by_stream) or answer

    async def _asked(self, server: str, question: bytes, kind: socket.SocketKind, way: _Way) -> bytes:
        try:
            with await asyncio.to_thread(self._open_socket, kind) as asking:
                asking.setblocking(False)  # noqa: FBT003 - its only parameter
                async with asyncio.timeout(_SERVER_SECONDS):
                    await asyncio.get_running_loop().sock_connect(asking, (server, self._port))
                    return await way(asking, question)
        except (OSError, TimeoutError):
            return b""

    async def _by_datagram(self, asking: socket.socket, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(asking, question)
        while True:
            answer = await loop.sock_recv(asking, _ANSWER_BYTES)
            # Whoever guesses the port must guess this too; the program compares the rest.
            if answer[:2] == question[:2]:
                return answer

    async def _by_stream(self, asking: socket.socket, question: bytes) -> bytes:
        """Nothing for an answer longer than any that the program reads."""
        await asyncio.get_running_loop().sock_sendall(asking, len(question).to_bytes(2, "big") + question)
        length = int.from_bytes(await _exactly(asking, 2), "big")
        if not 2 <= length <= _ANSWER_BYTES:
            return b""
        answer = await _exactly(asking, length)
        return answer if answer[:2] == question[:2] else b""


async def _exactly(asking: socket.socket, length: int) -> bytes:
    """Receive so many bytes; OSError if there are fewer."""
    data = b""
    while len(data) < length:
        piece = await asyncio.get_running_loop().sock_recv(asking, length - len(data))
        if not piece:
            raise ConnectionResetError("a server's answer ends early")
        data += piece
    return data


def host_servers(path: Path = RESOLV_CONF) -> list[str]:
    """Read the IPv4 resolvers of the host; none where there is no such file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = [parts[1] for line in lines if len(parts := line.split()) >= 2 and parts[0] == "nameserver"]
    return [address for address in found if _is_ipv4(address)]


def _is_ipv4(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, text)
    except OSError:
        return False
    return True
