"""Files and archives, in and out: through api and node against a direct connection to a guest, alone and eight fold."""

import asyncio
import tarfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp

from harness import Platform
from raw_sandbox import TOKEN, RawBox, RawSandbox
from report import Row, median
from sandboxd.contract.messages import Resources

_MIB: Final = 1024 * 1024
BYTES: Final = 256 * _MIB
ROUNDS: Final = 3
MANY: Final = 8
MEMORY: Final = {"memory_mib": 512, "disk_mib": 1024}
_PIECE: Final = bytes(256 * 1024)
_READ: Final = 1024 * 1024

_PATH: Final = "/tmp/file"


def _tar() -> bytes:
    """An archive of one file without its content."""
    info = tarfile.TarInfo("file")
    info.size = BYTES
    return info.tobuf(tarfile.USTAR_FORMAT)


async def _content(head: bytes = b"", tail: bytes = b"") -> AsyncGenerator[bytes]:
    if head:
        yield head
    for _ in range(BYTES // len(_PIECE)):
        yield _PIECE
    if tail:
        yield tail


@dataclass(frozen=True, slots=True)
class End:
    """Something that takes the calls on files: a guest itself, or a sandbox of the platform."""

    session: aiohttp.ClientSession
    base: str
    flags: dict[str, str]
    """What the guest protocol wants said that is a default of the public one."""

    async def upload(self) -> None:
        await self._send("files", {"path": _PATH}, b"", b"")

    async def download(self) -> None:
        await self._receive("files", {"path": _PATH})

    async def unpack(self) -> None:
        await self._send("archive", {"path": "/tmp/out"}, _tar(), bytes(1024))

    async def pack(self) -> None:
        await self._receive("archive", {"path": "/tmp/out"})

    async def _send(self, route: str, query: dict[str, str], head: bytes, tail: bytes) -> None:
        length = str(BYTES + len(head) + len(tail))
        wanted = query | (self.flags if route == "archive" else {})
        async with self.session.put(
            f"{self.base}/{route}", params=wanted, data=_content(head, tail), headers={"Content-Length": length}
        ) as answer:
            if not answer.ok:
                raise RuntimeError(f"{answer.status} {await answer.text()}")

    async def _receive(self, route: str, query: dict[str, str]) -> None:
        total = 0
        async with self.session.get(f"{self.base}/{route}", params=query) as answer:
            async for piece in answer.content.iter_any():
                total += len(piece)
        if total < BYTES:
            raise RuntimeError(f"{answer.status}, {total} bytes")


async def _rate(ends: list[End], act: Callable[[End], Awaitable[None]]) -> float:
    """MB/s of all ends together."""
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for end in ends:
            group.create_task(_awaited(act(end)))
    return BYTES * len(ends) / (time.perf_counter() - begun) / 1e6


async def _awaited(work: Awaitable[None]) -> None:
    await work


@asynccontextmanager
async def _raw(raw: RawBox, count: int) -> AsyncGenerator[list[End]]:
    sandboxes: list[RawSandbox] = []
    connector = aiohttp.TCPConnector(socket_factory=raw.socket_for, limit=0)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=_READ) as session:
        try:
            ends: list[End] = []
            for _ in range(count):
                sandbox = await raw.create(Resources(**MEMORY))
                sandboxes.append(sandbox)
                base = f"http://{sandbox.slot.address}:49979/v1"
                await _initialized(session, base, raw, sandbox)
                ends.append(End(session, base, {"overwrite": "1"}))
            yield ends
        finally:
            for sandbox in sandboxes:
                await raw.remove(sandbox)


async def _initialized(session: aiohttp.ClientSession, base: str, raw: RawBox, sandbox: RawSandbox) -> None:
    while True:
        try:
            async with session.post(f"{base}/init", json=raw.init_of(sandbox)) as answer:
                await answer.read()
                return
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _ours(platform: Platform, count: int) -> AsyncGenerator[list[End]]:
    headers = {"Authorization": f"Bearer {platform.key}"}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=timeout, read_bufsize=_READ
    ) as session:
        ends: list[End] = []
        try:
            for _ in range(count):
                async with session.post(f"{platform.url}/v1/sandboxes", json={"resources": MEMORY}) as answer:
                    ends.append(End(session, f"{platform.url}/v1/sandboxes/{(await answer.json())['id']}", {}))
            yield ends
        finally:
            for end in ends:
                await (await session.delete(end.base, params={"grace_seconds": 0})).read()


async def files(platform: Platform, raw: RawBox) -> list[Row]:
    """Every way in and out, alone and eight at once, in turn with a direct connection."""
    return [row for count in (1, MANY) for row in await _measured(platform, raw, count)]


async def _measured(platform: Platform, raw: RawBox, count: int) -> list[Row]:
    acts: tuple[tuple[str, float, Callable[[End], Awaitable[None]]], ...] = (
        ("file up", 0.8, End.upload),
        ("file down", 0.5, End.download),
        ("archive up", 0.8, End.unpack),
        ("archive down", 0.5, End.pack),
    )
    rows: list[Row] = []
    async with _raw(raw, count) as direct, _ours(platform, count) as ours:
        for name, limit, act in acts:
            mine: list[float] = []
            theirs: list[float] = []
            for number in range(ROUNDS + 1 if count == 1 else 2):
                their_rate, my_rate = await _rate(direct, act), await _rate(ours, act)
                if number:  # the first warms both sides
                    theirs.append(their_rate)
                    mine.append(my_rate)
            rows.append(
                Row(
                    name=f"{name}, through api and node" + (f", {count} sandboxes at once" if count > 1 else ""),
                    unit="MB/s",
                    value=median(mine),
                    baseline=median(theirs),
                    baseline_name="direct connection to the guest",
                    limit=limit,
                    more_is_better=True,
                    note=f"{BYTES // _MIB} MiB each, p50 of {len(mine)}, in turn",
                )
            )
    return rows
