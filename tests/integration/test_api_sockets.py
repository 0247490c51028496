"""WebSockets through the api to a node over fake guests: passed on unread, and ended with a word wherever it stops."""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api.routes import passthrough, socket_answer
from api.services.identity import Callers
from api.store import identity as identity_store
from api_stand import Client, Stand, api, make_settings
from fake_node import FakeNode
from live_stand import StandSandbox, init_of
from sandboxd.app import attach, dial, processes
from sandboxd.app.bounds import Bounds
from sandboxd.app.call import DataPlane
from sandboxd.contract.frames import FrameKind
from sandboxd.contract.ids import new_id
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.sockets import PROCESS_PROTOCOL
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.processes.live import Ending
from sockets import PATIENCE_SECONDS, Attached, attached, dialled


class Guests:
    """Sandboxes of a node, each with a fake guest, there when they are first asked for."""

    def __init__(self) -> None:
        self.leaving = Ending()
        self.held: defaultdict[str, StandSandbox] = defaultdict(lambda: StandSandbox(FakeGuest()))
        plane = DataPlane(self, lambda: datetime.now(UTC), os.urandom, Bounds(), self.leaving)
        self.routes = [*attach.routes(plane), *dial.routes(plane), *processes.routes(plane)]

    @asynccontextmanager
    async def use(self, sandbox_id: str) -> AsyncGenerator[StandSandbox]:
        sandbox = self.held[sandbox_id]
        sandbox.id = sandbox_id
        async with sandbox.use(sandbox_id):
            yield sandbox

    async def start(self, sandbox_id: str, *argv: str, **spec: Any) -> str:
        guest = self.guest(sandbox_id)
        if guest.initialized_by is None:
            await guest.init(init_of())
        process_id = new_id("prc", os.urandom)
        await guest.start({"id": process_id, "argv": list(argv), "stdin": True, "env": {}, **spec})
        return process_id

    def guest(self, sandbox_id: str) -> FakeGuest:
        guest = self.held[sandbox_id].guest
        assert isinstance(guest, FakeGuest)
        return guest


class World:
    """An api, its node, and a sandbox with a process that sends back what it is sent."""

    def __init__(self, stand: Stand, guests: Guests, sandbox: str, process: str) -> None:
        self.stand, self.guests, self.sandbox, self.process = stand, guests, sandbox, process

    @property
    def url(self) -> str:
        return f"{self.stand.url}/v1/sandboxes/{self.sandbox}"

    def attach(
        self, query: str = "", *, client: Client | None = None, process: str | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Attached]:
        headers = options.pop("headers", (client or self.stand.root).headers)
        url = f"{self.url}/processes/{process or self.process}"
        return attached(self.stand.session, url, headers, query, **options)

    async def refused(self, **options: Any) -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            async with self.attach(**options):
                pass
        return error.value.status


@asynccontextmanager
async def world_in(base: Path) -> AsyncGenerator[World]:
    guests = Guests()
    node = FakeNode(make_settings(base).run_dir, routes=guests.routes)
    await node.start()
    try:
        async with api(base, node=node) as stand:
            sandbox = (await stand.root.create())["id"]
            yield World(stand, guests, sandbox, await guests.start(sandbox, "cat"))
    finally:
        guests.leaving.set()
        await node.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with world_in(tmp_path) as made:
        yield made


async def test_all_of_it_through_the_api(world: World) -> None:
    async with world.attach() as client:
        assert client.socket.protocol == PROCESS_PROTOCOL
        response: Any = client.socket._response
        assert response.headers["sandlot-request-id"].startswith("req")
        assert client.process["sandbox_id"] == world.sandbox
        for part in (b"a" * 262_144, b"b" * 100_000, b"c"):
            await client.type(part)
        await client.until(lambda _: client.acknowledged == 362_145)
        await client.until(lambda _: len(client.text) == 362_145)
        await client.end()
        assert await client.rest() == 1000
        assert client.exit["exit_code"] == 0
        assert client.text == b"a" * 262_144 + b"b" * 100_000 + b"c"


async def test_what_the_node_refuses_is_passed_on(world: World) -> None:
    assert await world.refused(query="after=1") == 416
    assert await world.refused(query="nothing=1") == 422
    assert await world.refused(process=new_id("prc", os.urandom)) == 404
    assert await world.refused(process="nothing") == 404
    assert await world.refused(protocols=("sandlot.process.v2",)) == 400


async def test_who_may_attach(world: World) -> None:
    stand = world.stand
    project = (await stand.root.call("GET", "/v1/me")).expect(200)["project"]["id"]
    reader = stand.with_key(await stand.new_key("processes:read", project=project))
    assert await world.refused(client=stand.with_key(None)) == 401
    assert await world.refused(client=stand.with_key("nonsense")) == 401
    assert await world.refused(client=stand.with_key(await stand.new_key("files", project=project))) == 403
    assert await world.refused(client=stand.with_key(await stand.new_key())) == 404
    async with world.attach(client=reader) as watching, world.attach() as writing:
        await watching.type(b"no")
        await watching.until(lambda _: watching.problems)
        assert watching.problems[0]["code"] == "scope_required"
        await writing.type(b"yes")
        await watching.until_text(b"yes")
        assert watching.text == b"yes"


async def test_who_claims_to_may_write_may_not(world: World) -> None:
    project = (await world.stand.root.call("GET", "/v1/me")).expect(200)["project"]["id"]
    reader = world.stand.with_key(await world.stand.new_key("processes:read", project=project))
    async with world.attach(headers=reader.headers | {"Sandlot-May-Write": "true"}) as client:
        await client.type(b"no")
        await client.until(lambda _: client.problems)
        assert client.problems[0]["code"] == "scope_required"


async def test_a_browser_brings_its_key_as_a_subprotocol(world: World) -> None:
    key = world.stand.root.headers["Authorization"].removeprefix("Bearer ")
    bearer = f"sandlot.bearer.{key}"
    async with world.attach(headers={}, protocols=(PROCESS_PROTOCOL, bearer)) as client:
        assert client.socket.protocol == PROCESS_PROTOCOL
        await client.type(b"x")
        await client.until_text(b"x")
    asked = world.stand.node.requests[-1]
    assert key not in str(asked.headers)
    assert set(asked.headers) == {
        "Host", "Connection", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol",
        "Sandlot-Request-Id", "Sandlot-May-Write",
    }  # fmt: skip
    assert asked.headers["Sec-WebSocket-Protocol"] == PROCESS_PROTOCOL
    other = f"sandlot.bearer.{await world.stand.new_key()}"
    assert await world.refused(headers={}, protocols=(PROCESS_PROTOCOL, bearer, other)) == 401
    assert await world.refused(protocols=(PROCESS_PROTOCOL, other)) == 401
    assert await world.refused(headers={}, protocols=(PROCESS_PROTOCOL, other)) == 404
    assert await world.refused(headers={}, protocols=(PROCESS_PROTOCOL, "sandlot.bearer.nonsense")) == 401
    # A credential in a subprotocol is one of a WebSocket's handshake alone.
    answer = await world.stand.with_key(None).call("GET", "/v1/me", headers={"Sec-WebSocket-Protocol": bearer})
    assert answer.status == 401


async def test_without_a_handshake(world: World) -> None:
    path = f"/v1/sandboxes/{world.sandbox}"
    for ending in (f"/processes/{world.process}/attach", "/dial?port=80"):
        body = (await world.stand.root.call("GET", path + ending)).expect(400)
        assert body["code"] == "malformed_request"
        assert "WebSocket" in body["hint"]


async def test_an_ended_sandbox_and_a_node_out_of_reach(world: World) -> None:
    other = (await world.stand.root.create())["id"]
    world.stand.node.end(other, SandboxReason.OUT_OF_MEMORY)
    await world.stand.node.send_report()
    url = f"{world.stand.url}/v1/sandboxes/{other}/processes/{world.process}"
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        async with attached(world.stand.session, url, world.stand.root.headers):
            pass
    assert error.value.status == 410
    await world.stand.node.stop()
    assert await world.refused() == 503


# --- what goes away


async def test_an_api_that_stops_says_attach_again(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        inner = AsyncExitStack()
        world = await inner.enter_async_context(world_in(tmp_path))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        world.stand.session = session
        flooded = await world.guests.start(world.sandbox, "yes")
        quiet = await stack.enter_async_context(world.attach())
        loud = await stack.enter_async_context(world.attach(process=flooded))
        await loud.until(lambda _: len(loud.text) > 1_000_000)
        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(one.rest()) for one in (quiet, loud)]
            group.create_task(inner.aclose())
        assert [end.result() for end in ends] == [1001, 1001]


async def test_a_node_that_dies_is_out_of_reach(world: World) -> None:
    async with world.attach() as client:
        runner: Any = world.stand.node._runner
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        assert await client.rest() == 4503
    async with world.attach() as client:
        assert client.process["state"] == "running"


async def test_a_client_that_vanishes_takes_its_attachment_along(world: World) -> None:
    async with world.attach() as client:
        sandbox = world.guests.held[world.sandbox]
        assert sandbox.users == 1
        client.cut()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sandbox.users:  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.001)


async def test_a_credential_that_has_expired_is_no_more_attached(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_answer, "_RECHECK_SECONDS", 0.02)
    stand = world.stand
    project = (await stand.root.call("GET", "/v1/me")).expect(200)["project"]["id"]
    key = await stand.new_key("processes", project=project, expires_at=stand.clock.now_us() + 3_600_000_000)
    async with world.attach(client=stand.with_key(key)) as client, world.attach() as other:
        await client.type(b"x")
        await client.until_text(b"x")
        stand.clock.ahead_seconds = 3601
        assert await client.rest() == 4401
        await other.type(b"y")
        await other.until_text(b"y")


async def test_an_attachment_outlives_its_token_and_ends_with_its_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_answer, "_RECHECK_SECONDS", 0.02)
    stand = world.stand
    project = (await stand.root.call("GET", "/v1/me")).expect(200)["project"]["id"]
    maker = stand.with_key(await stand.new_key(project=project))
    path = f"/v1/sandboxes/{world.sandbox}/tokens"
    token = (await maker.call("POST", path, {"scopes": ["processes"]})).expect(201)["token"]
    checked: list[float] = []
    recheck = Callers.recheck

    async def counted(callers: Callers, *arguments: Any, **options: Any) -> None:
        await recheck(callers, *arguments, **options)
        checked.append(stand.clock.ahead_seconds)

    monkeypatch.setattr(Callers, "recheck", counted)
    async with world.attach(client=stand.with_key(token)) as client:
        await client.type(b"x")
        await client.until_text(b"x")
        stand.clock.ahead_seconds = 86_400
        assert (await stand.with_key(token).call("GET", "/v1/me")).status == 401
        async with asyncio.timeout(PATIENCE_SECONDS):
            while checked.count(86_400) < 3:  # noqa: ASYNC110 - it goes on by itself
                await asyncio.sleep(0.01)
        await client.type(b"y")
        await client.until_text(b"y")
        database = stand.platform.database
        await database.write(identity_store.revoke_named, project, "test", stand.clock.now_us())
        stand.clock.ahead_seconds += 2
        assert await client.rest() == 4401


async def test_a_followed_stream_ends_with_its_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passthrough, "RECHECK_SECONDS", 0.02)
    stand = world.stand
    project = (await stand.root.call("GET", "/v1/me")).expect(200)["project"]["id"]
    key = stand.with_key(await stand.new_key("processes", project=project))
    url = f"{stand.url}/v1/sandboxes/{world.sandbox}/processes/{world.process}/output?follow=true"
    headers = {"Accept": "application/x-ndjson"}
    async with (
        stand.session.get(url, headers=key.headers | headers) as revoked,
        stand.session.get(url, headers=stand.root.headers | headers) as other,
    ):
        assert (revoked.status, other.status) == (200, 200)
        await stand.platform.database.write(identity_store.revoke_named, project, "test", stand.clock.now_us())
        stand.clock.ahead_seconds = 2
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(aiohttp.ClientPayloadError):
                await revoked.content.read()
        assert not other.content.at_eof()


# --- bounds


async def test_a_reader_that_does_not_read_costs_the_api_little(world: World) -> None:
    """Whoever reads, reads on; whoever does not is waited for as far back as the process, and misses what is lost."""
    flooded = await world.guests.start(world.sandbox, "yes", output={"mode": "ring", "ring_bytes": 1_048_576})
    async with world.attach(process=flooded) as slow, world.attach(process=flooded) as fast:
        await fast.until(lambda _: len(fast.text) > 20_000_000)
        await slow.signal("SIGINT")
        assert await fast.rest() == 1000
        assert await slow.rest() == 1000
        lost = sum(frame.next_seq - frame.seq for frame in slow.frames if frame.kind == FrameKind.LOST)
        assert lost > 0
        assert lost + len(slow.text) == slow.position


async def test_dialling_through_the_api(world: World) -> None:
    stand = world.stand
    world.guests.guest(world.sandbox).echoing.add(8080)
    async with dialled(stand.session, world.url, stand.root.headers, 8080) as socket:
        sent = os.urandom(3_000_000)
        received = bytearray()

        async def send() -> None:
            for begin in range(0, len(sent), 65_536):
                await socket.send_bytes(sent[begin : begin + 65_536])
            await socket.send_str('{"eof":true}')

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            while (message := await socket.receive(PATIENCE_SECONDS)).type == aiohttp.WSMsgType.BINARY:
                received += message.data
        assert message.data == '{"eof":true}'
        assert received == sent
        await socket.receive(PATIENCE_SECONDS)
        assert socket.close_code == 1000
    async with dialled(stand.session, world.url, stand.root.headers, 8081) as socket:
        await socket.receive(PATIENCE_SECONDS)
        assert socket.close_code == 4502
    project = (await stand.root.call("GET", "/v1/me")).expect(200)["project"]["id"]
    for scope in ("processes", "tunnels:read"):
        reader = stand.with_key(await stand.new_key(scope, project=project))
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await stand.session.ws_connect(f"{world.url}/dial?port=8080", headers=reader.headers)
        assert error.value.status == 403
