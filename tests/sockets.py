"""WebSockets of the public surface as a client has them, over any address."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from sandboxd.contract.frames import HEADER_BYTES, OUTPUT_KINDS, Decoder, Frame, FrameKind, encode
from sandboxd.contract.sockets import PROCESS_PROTOCOL, TCP_PROTOCOL

PATIENCE_SECONDS = 30.0


@dataclass
class Attached:
    """A client that is attached to a process."""

    socket: aiohttp.ClientWebSocketResponse
    frames: list[Frame] = field(default_factory=list[Frame])
    offset: int = 0
    process: dict[str, Any] = field(default_factory=dict[str, Any])

    async def begin(self) -> None:
        [first] = await self.until(bool)
        assert first.kind == FrameKind.ATTACHED
        self.process = first.json()
        self.offset = self.process["stdin_offset"]

    async def until(self, check: Callable[[list[Frame]], object]) -> list[Frame]:
        """Receive until the frames so far pass."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not check(self.frames):
                message = await self.socket.receive()
                assert message.type == aiohttp.WSMsgType.BINARY, (message, self.socket.close_code, self.frames[-3:])
                self.frames.append(one_frame(message.data))
        return self.frames

    async def until_text(self, text: bytes) -> None:
        await self.until(lambda _: text in self.text)

    async def rest(self) -> int | None:
        """Receive to the end; the close code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (message := await self.socket.receive()).type == aiohttp.WSMsgType.BINARY:
                self.frames.append(one_frame(message.data))
        return self.socket.close_code

    def cut(self) -> None:
        """Break the connection, without a word."""
        response: Any = self.socket._response
        response.connection.transport.abort()

    @property
    def text(self) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.kind in OUTPUT_KINDS)

    @property
    def position(self) -> int:
        """Where to go on that loses nothing."""
        return max(
            (frame.next_seq for frame in self.frames if frame.kind in {*OUTPUT_KINDS, FrameKind.LOST}), default=0
        )

    @property
    def exit(self) -> dict[str, Any]:
        assert self.frames[-1].kind == FrameKind.EXIT, self.frames[-3:]
        return self.frames[-1].json()

    @property
    def acknowledged(self) -> int:
        seqs = [frame.seq for frame in self.frames if frame.kind == FrameKind.STDIN_ACK]
        assert seqs == sorted(seqs)
        return max(seqs, default=self.process["stdin_offset"])

    @property
    def problems(self) -> list[dict[str, Any]]:
        return [frame.json() for frame in self.frames if frame.kind == FrameKind.ERROR]

    async def send(self, kind: int, payload: bytes = b"", seq: int = 0) -> None:
        await self.socket.send_bytes(encode(Frame(kind, seq, payload)))

    async def type(self, data: bytes) -> None:
        """Send standard input behind what was sent before."""
        await self.send(FrameKind.STDIN, data, self.offset)
        self.offset += len(data)

    async def end(self) -> None:
        await self.send(FrameKind.STDIN_CLOSE, seq=self.offset)

    async def resize(self, rows: int, cols: int) -> None:
        await self.send(FrameKind.RESIZE, json.dumps({"rows": rows, "cols": cols}).encode())

    async def signal(self, name: str, scope: str = "tree") -> None:
        await self.send(FrameKind.SIGNAL, json.dumps({"signal": name, "scope": scope}).encode())


def one_frame(data: bytes) -> Frame:
    """Return the frame that a message is."""
    [frame] = Decoder().feed(data)
    assert len(data) == HEADER_BYTES + len(frame.payload)
    return frame


@asynccontextmanager
async def attached(  # what a handshake can be
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    query: str = "",
    *,
    protocols: Iterable[str] = (PROCESS_PROTOCOL,),
    compress: int = 0,
    autoping: bool = True,
) -> AsyncGenerator[Attached]:
    """Attach to the process at `url`."""
    async with session.ws_connect(
        f"{url}/attach?{query}",
        headers=headers,
        protocols=protocols,
        compress=compress,
        autoping=autoping,
        max_msg_size=0,
    ) as socket:
        made = Attached(socket)
        await made.begin()
        yield made


@asynccontextmanager
async def dialled(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], port: int
) -> AsyncGenerator[aiohttp.ClientWebSocketResponse]:
    """Connect to a port of the sandbox at `url`."""
    async with session.ws_connect(f"{url}/dial?port={port}", headers=headers, protocols=(TCP_PROTOCOL,)) as socket:
        yield socket
