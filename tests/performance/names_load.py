"""What the names benchmark runs in other namespaces: a server, and clients. `python names_load.py WHAT ARGUMENTS`."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final, cast

import uvloop

from netpolicy import dns

REQUEST: Final = b"GET / HTTP/1.1\r\nHost: pkg.test\r\n\r\n"
ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_PIECE: Final = bytes(256 * 1024)
_AT_ONCE: Final = 32
_A_SECOND: Final = 500  # connections; the policy allows 1,000 new ones a second


class _Server(asyncio.Protocol):
    """Answers each request; a POST is answered by as much as anybody reads."""

    def __init__(self) -> None:
        self._transport = asyncio.Transport()
        self._flood = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            self._flood = True
            self.resume_writing()
        else:
            self._transport.write(ANSWER)

    def pause_writing(self) -> None:
        self._flood = False

    def resume_writing(self) -> None:
        self._flood = True
        while self._flood and not self._transport.is_closing():
            self._transport.write(_PIECE)


class _Echo(asyncio.DatagramProtocol):
    """The baseline of a question: the shortest way there and back."""

    def __init__(self) -> None:
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(data, addr)


async def serve(address: str) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "0.0.0.0", 80, backlog=4096)  # noqa: S104 - a namespace of its own
    await loop.create_datagram_endpoint(_Echo, local_addr=(address, 9))
    print("serving", flush=True)
    await server.serve_forever()


async def connections(address: str, count: str) -> float:
    """Return connections a second, each with one request and its answer."""
    left = int(count)

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            reader, writer = await asyncio.open_connection(address, 80)
            writer.write(REQUEST)
            if await reader.readexactly(len(ANSWER)) != ANSWER:
                raise RuntimeError("not the answer")
            writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    return int(count) / (time.perf_counter() - began)


async def download(address: str, mebibytes: str) -> float:
    """Return MiB/s of one long answer."""
    with socket.create_connection((address, 80)) as end:
        end.sendall(b"POST / HTTP/1.1\r\nHost: pkg.test\r\n\r\n")
        left, buffer = int(mebibytes) << 20, bytearray(1 << 20)
        began = time.perf_counter()
        while left > 0:
            got = end.recv_into(buffer)
            if not got:
                raise RuntimeError("the answer ended")
            left -= got
        return int(mebibytes) / (time.perf_counter() - began)


async def questions(address: str, port: str, count: str) -> float:
    """Return questions a second, some under way at a time."""
    query = dns.ask("pkg.test", 7)
    loop = asyncio.get_running_loop()
    left = int(count)
    began = time.perf_counter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        end.connect((address, int(port)))
        sent = 0
        while left > 0:
            while sent < _AT_ONCE and left - sent > 0:
                end.send(query)
                sent += 1
            async with asyncio.timeout(5):
                await loop.sock_recv(end, 4096)
            sent, left = sent - 1, left - 1
    return int(count) / (time.perf_counter() - began)


async def hold(address: str, count: str) -> float:
    """Open connections and keep them, idle, until standard input ends."""
    held: list[Any] = []
    for number in range(int(count)):
        if number % _A_SECOND == _A_SECOND - 1:
            await asyncio.sleep(1)
        reader, writer = await asyncio.open_connection(address, 80)
        writer.write(REQUEST)
        await reader.readexactly(len(ANSWER))
        held.append((reader, writer))
    print("holding", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    return float(len(held))


_WORK: Final[dict[str, Callable[..., Any]]] = {
    "connections": connections, "download": download, "questions": questions, "hold": hold, "serve": serve,
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(uvloop.run(_WORK[sys.argv[1]](*sys.argv[2:]))), flush=True)
