"""How long a key takes to come back: a terminal through api and node against one on the guest itself."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from harness import Platform
from raw_sandbox import TOKEN, RawBox, RawSandbox
from report import Row, median, percentile
from sandboxd.contract.frames import OUTPUT_KINDS, Decoder, Frame, FrameKind, encode
from sandboxd.contract.sockets import PROCESS_PROTOCOL
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.guest_client.base import GuestUnreachableError
from sandboxd.guest_client.connection import GuestConnection
from sandboxd.guest_client.upgrade import UpgradedStream, upgraded

KEYS = 400
PROGRAM = ["cat"]
SMALL = {"memory_mib": 256}

Send = Callable[[bytes], Awaitable[None]]
Receive = Callable[[], Awaitable[bytes]]


class _Terminal:
    """One attached terminal: keys out, frames in."""

    def __init__(self, send: Send, receive: Receive) -> None:
        self._send = send
        self._receive = receive
        self._decoder = Decoder()
        self._offset = 0

    async def begin(self) -> None:
        while not any(frame.kind == FrameKind.ATTACHED for frame in self._decoder.feed(await self._receive())):
            pass

    async def key(self, number: int) -> float:
        """Type a key and wait until it is echoed; milliseconds. A line now and then: a terminal holds no more."""
        key = b"\r" if number % 64 == 63 else b"x"
        begun = time.perf_counter()
        await self._send(encode(Frame(FrameKind.STDIN, self._offset, key)))
        self._offset += 1
        while not any(frame.kind in OUTPUT_KINDS for frame in self._decoder.feed(await self._receive())):
            pass
        return (time.perf_counter() - begun) * 1000


@asynccontextmanager
async def _through(platform: Platform, http: aiohttp.ClientSession, process: str) -> AsyncGenerator[_Terminal]:
    url = f"{platform.url}{process}/attach"
    async with http.ws_connect(url, protocols=(PROCESS_PROTOCOL,), max_msg_size=0) as link:
        yield _Terminal(link.send_bytes, link.receive_bytes)


@asynccontextmanager
async def _direct(stream: UpgradedStream) -> AsyncGenerator[_Terminal]:
    yield _Terminal(stream.write, stream.read)


async def _told(connection: GuestConnection, raw: RawBox, sandbox: RawSandbox) -> None:
    """Wait until the guest listens, and tell it what it has to know."""
    while True:
        try:
            await connection.json("POST", "init", json=raw.init_of(sandbox))
        except GuestUnreachableError:
            await asyncio.sleep(0.02)
        else:
            return


async def _echoes(ours: _Terminal, theirs: _Terminal) -> tuple[list[float], list[float]]:
    """Type in turns; what it took."""
    await ours.begin()
    await theirs.begin()
    through: list[float] = []
    direct: list[float] = []
    for number in range(KEYS):
        through.append(await ours.key(number))
        direct.append(await theirs.key(number))
    return through, direct


async def terminal(platform: Platform, raw: RawBox) -> list[Row]:
    """Keys typed one by one into `cat` on a terminal."""
    sandbox = await raw.create()

    def open_socket() -> socket.socket:
        return raw.socket_for(None)

    connection = GuestConnection(sandbox.slot.address, TOKEN, open_socket=open_socket, port=GUEST_PORT)
    headers = {"Authorization": f"Bearer {platform.key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as http:
        made = await _call(http, f"{platform.url}/v1/sandboxes", {"resources": SMALL})
        path = f"/v1/sandboxes/{made['id']}"
        started = await _call(http, f"{platform.url}{path}/processes", {"argv": PROGRAM, "tty": {}})
        await _told(connection, raw, sandbox)
        other = {"id": raw.process_id(), "argv": PROGRAM, "tty": {"rows": 24, "cols": 80}, "env": {}}
        await connection.json("POST", "processes", json=other)
        guest_path = f"processes/{other['id']}/attach"
        async with (
            _through(platform, http, f"{path}/processes/{started['id']}") as ours,
            upgraded(connection, guest_path, {}, PROCESS_PROTOCOL) as stream,
            _direct(stream) as theirs,
        ):
            through, direct = await _echoes(ours, theirs)
        async with http.delete(f"{platform.url}{path}?grace_seconds=0") as answer:
            await answer.read()
    await connection.close()
    await raw.remove(sandbox)
    note = f"{KEYS} keys in turn into `cat` on a terminal; the baseline attaches to a guest in a raw sandbox"
    return [
        Row(
            name="a key's echo in a terminal, through api and node, p50",
            unit="ms",
            value=median(through),
            baseline=median(direct),
            baseline_name="straight to the guest",
            limit=2.5,
            note=note,
        ),
        Row(
            name="the same, p99",
            unit="ms",
            value=percentile(through, 99),
            baseline=percentile(direct, 99),
            baseline_name="straight to the guest",
            note=note,
        ),
        Row(name="the same, p50, absolute", unit="ms", value=median(through), limit=5),
    ]


async def _call(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    async with http.post(url, data=json.dumps(body).encode()) as answer:
        text = await answer.read()
        if not answer.ok:
            raise RuntimeError(f"{url}: {answer.status} {text!r}")
        return json.loads(text)
