"""Attachments and connections over the node's guest client: one suite for the fake and for the real guest."""

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

from infra.setup.places import cache_dir, guest_path
from live_stand import init_of, open_socket
from sandboxd.contract.frames import OUTPUT_KINDS, Frame, FrameKind, encode
from sandboxd.contract.ids import new_id
from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import Guest, GuestAttachment
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.guest_client.http import HttpGuest

TOKEN = "5b" * 32


@pytest.fixture
def echo_port() -> Generator[int]:
    """A server on loopback that sends back what it is sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    while data := peer.recv(65_536):
                        peer.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture(params=["fake", "native"])
async def guest(request: pytest.FixtureRequest, echo_port: int) -> AsyncGenerator[Guest]:
    if request.param == "fake":
        fake = FakeGuest()
        fake.echoing.add(echo_port)
        await fake.init(init_of(user="root", cwd="/"))
        yield fake
        return
    hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
    command = [str(guest_path(cache_dir())), "--native", "--listen", "127.0.0.1:0", "--peer", "127.0.0.1"]
    with subprocess.Popen(  # noqa: ASYNC220 - before anything runs beside it
        [*command, "--token-sha256", hashed], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        try:
            host, port = program.stdout.readline().strip().rsplit(":", 1)
            real = HttpGuest(host, TOKEN, open_socket=open_socket, port=int(port))
            await real.init(init_of(user="root", cwd="/"))
            yield real
            await real.close()
        finally:
            program.kill()


async def start(guest: Guest, *argv: str, **fields: Any) -> str:
    spec = {
        "id": new_id("prc", os.urandom), "argv": list(argv), "env": {}, "stdin": True, "merge_stderr": False,
        "kill_grace_seconds": 0.2, "output": {"mode": "ring", "ring_bytes": 4_194_304, "limit_bytes": None},
    }  # fmt: skip
    return (await guest.start(spec | fields)).process["id"]


class Reader:
    """Frames of an attachment as they come."""

    def __init__(self, attachment: GuestAttachment) -> None:
        self.frames: list[Frame] = []
        self._batches = attachment.batches()

    async def until(self, *kinds: int) -> Frame:
        """Read on until there is a new frame of one of the kinds."""
        begin = len(self.frames)
        async with asyncio.timeout(30):
            while True:
                self.frames.extend((await anext(self._batches)).frames())
                for frame in self.frames[begin:]:
                    if frame.kind in kinds:
                        return frame

    async def until_text(self, text: bytes) -> None:
        while text not in self.text:
            await self.until(*OUTPUT_KINDS)

    @property
    def text(self) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.kind in OUTPUT_KINDS)

    def all_of(self, kind: int) -> list[Frame]:
        return [frame for frame in self.frames if frame.kind == kind]


async def test_an_attachment_from_first_to_last(guest: Guest) -> None:
    process = await start(guest, "cat")
    async with guest.attach(process) as attachment:
        reader = Reader(attachment)
        first = (await reader.until(FrameKind.ATTACHED)).json()
        assert (first["id"], first["after"], first["stdin_offset"], first["state"]) == (process, 0, 0, "running")
        await attachment.send(encode(Frame(FrameKind.STDIN, 0, b"hello")))
        await attachment.send(encode(Frame(FrameKind.STDIN, 3, b"lo there")))
        await reader.until_text(b"hello there")
        await attachment.send(encode(Frame(FrameKind.STDIN, 99, b"gap")))
        problem = (await reader.until(FrameKind.ERROR)).json()
        assert (problem["code"], problem["offset"]) == ("stdin_gap", 11)
        await attachment.send(encode(Frame(FrameKind.STDIN_CLOSE, 11)))
        assert (await reader.until(FrameKind.EXIT)).json()["exit_code"] == 0
        assert reader.text == b"hello there"
        assert reader.all_of(FrameKind.STDIN_ACK)[-1].seq == 11
        await attachment.detach()


async def test_an_attachment_that_goes_on(guest: Guest) -> None:
    process = await start(guest, "cat")
    async with guest.attach(process) as attachment:
        await attachment.send(encode(Frame(FrameKind.STDIN, 0, b"0123456789")))
        await Reader(attachment).until_text(b"0123456789")
        await attachment.detach()
    async with guest.attach(process, after=4) as attachment:
        reader = Reader(attachment)
        first = (await reader.until(FrameKind.ATTACHED)).json()
        assert (first["after"], first["stdin_offset"]) == (4, 10)
        await attachment.send(encode(Frame(FrameKind.STDIN, 5, b"56789ab")))
        await reader.until_text(b"456789ab")
    async with guest.attach(process, tail_bytes=2) as attachment:
        reader = Reader(attachment)
        assert (await reader.until(FrameKind.ATTACHED)).json()["after"] == 10
        await attachment.send(encode(Frame(FrameKind.SIGNAL, 0, b'{"signal":"SIGKILL","scope":"tree"}')))
        assert (await reader.until(FrameKind.EXIT)).json()["reason"] == "killed"
        assert reader.text == b"ab"


async def test_what_cannot_be_attached_to(guest: Guest) -> None:
    process = await start(guest, "cat")
    for options, code in (({"after": 5}, "seq_out_of_range"), ({}, "process_not_found")):
        target = process if code == "seq_out_of_range" else new_id("prc", os.urandom)
        with pytest.raises(ProblemError) as refused:
            async with guest.attach(target, **options):
                pass
        assert refused.value.code == code


async def test_a_terminals_size(guest: Guest) -> None:
    process = await start(guest, "cat", tty={"rows": 24, "cols": 80})
    async with guest.attach(process) as attachment:
        reader = Reader(attachment)
        await attachment.send(encode(Frame(FrameKind.RESIZE, 0, json.dumps({"rows": 5, "cols": 6}).encode())))
        await attachment.send(encode(Frame(FrameKind.STDIN, 7, b"gap")))
        await reader.until(FrameKind.ERROR)
    assert (await guest.process(process))["tty"] == {"rows": 5, "cols": 6}


async def test_a_connection_inside(guest: Guest, echo_port: int) -> None:
    async with guest.dial(echo_port) as stream:
        await stream.write(b"hello")
        assert await stream.read() == b"hello"
        stream.end()
        assert await stream.read() == b""


async def test_a_port_nobody_listens_on(guest: Guest) -> None:
    with pytest.raises(ProblemError) as refused:
        async with guest.dial(1):
            pass
    assert (refused.value.code, refused.value.members) == ("port_not_listening", {"port": 1})
