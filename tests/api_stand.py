"""An api in this process, on a free port, with fake nodes: what the api's integration tests stand on."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from api.app.platform import SOURCES
from api.app.server import serving
from api.config import Settings
from api.services import identity, keys
from api.services.platform import Platform
from api.store import identity as identity_store
from api.store.tables import Project
from fake_node import FakeNode, fake_node
from sandboxd.contract.ids import new_id

PATIENCE_SECONDS = 20.0


@dataclass(slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    body: Any

    def expect(self, status: int) -> Any:
        assert self.status == status, (self.status, self.raw[:2000])
        return self.body


class Client:
    """Calls the api with one key."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None) -> None:
        self.session = session
        self.url = url
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        headers = self.headers | options.pop("headers", {})
        if body is not None:
            options["json"] = body
        async with self.session.request(method, self.url + path, headers=headers, **options) as answer:
            raw = await answer.read()
            is_json = answer.content_type.endswith(("/json", "+json"))
            value = await answer.json(content_type=None) if is_json and raw else None
            return Answer(answer.status, answer.headers, raw, value)

    async def create(self, **body: Any) -> dict[str, Any]:
        return (await self.call("POST", "/v1/sandboxes", body)).expect(201)

    async def get(self, sandbox_id: str, **query: str) -> dict[str, Any]:
        return (await self.call("GET", f"/v1/sandboxes/{sandbox_id}", params=query)).expect(200)

    async def reach(self, sandbox_id: str, *states: str) -> dict[str, Any]:
        """Wait until the sandbox is in one of the states."""
        query = {"wait_for": ",".join(states), "wait_seconds": f"{PATIENCE_SECONDS:g}"}
        sandbox = await self.get(sandbox_id, **query)
        assert sandbox["state"] in states, sandbox
        return sandbox


class Clock:
    """Real time, moved by a test."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def now_us(self) -> int:
        return SOURCES.now_us() + round(self.ahead_seconds * 1e6)

    def monotonic(self) -> float:
        return SOURCES.monotonic() + self.ahead_seconds


@dataclass(slots=True)
class Stand:
    """A running api."""

    platform: Platform
    url: str
    session: aiohttp.ClientSession
    node: FakeNode
    clock: Clock
    root: Client

    def with_key(self, key: str | None) -> Client:
        return Client(self.session, self.url, key)

    async def new_key(
        self, *scopes: str, kind: keys.KeyKind = "project", project: str | None = None, expires_at: int | None = None
    ) -> str:
        """Make a key, of a project of its own unless one is given."""
        database, now_us = self.platform.database, self.platform.sources.now_us()
        if project is None:
            project = new_id("prj", os.urandom)
            root = await database.read(identity_store.root_any_project)
            record = Project(id=project, parent_id=root, name="other", created_at=now_us)
            await database.write(identity_store.insert_project_any_project, record)
        key = keys.new_key(os.urandom)
        stored = identity.new_key_record(
            key,
            project_id=project,
            name="test",
            kind=kind,
            scopes=scopes or ("admin",),
            now_us=now_us,
            key_id=new_id("key", os.urandom),
        )
        stored.expires_at = expires_at
        await database.write(identity_store.insert_key, project, stored)
        return keys.render(kind, key)


def make_settings(base: Path, **changes: Any) -> Settings:
    for name in ("data/api", "run/api"):
        (base / name).mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "instance": "hf",
        "data_dir": base / "data",
        "run_dir": base / "run",
        "api_host": "127.0.0.1",
        "api_port": 0,
        "api_drain_seconds": 0,
        "node_interval_seconds": 60,
        **changes,
    }
    return Settings(**values)


@asynccontextmanager
async def api(
    base: Path, *, node: FakeNode | None = None, report: bool = True, **changes: Any
) -> AsyncGenerator[Stand]:
    """Run an api, with a node that has reported."""
    settings = make_settings(base, **changes)
    clock = Clock()
    sources = dataclasses.replace(SOURCES, now_us=clock.now_us, monotonic=clock.monotonic)
    async with AsyncExitStack() as stack:
        if node is None:
            node = await stack.enter_async_context(fake_node(settings.run_dir))
        platform, url = await stack.enter_async_context(serving(settings, sources))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=False))
        )
        root = (settings.private_dir / "root-key").read_text().strip()
        stand = Stand(platform, url, session, node, clock, Client(session, url, root))
        if report:
            await node.send_report()
        yield stand


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail when it never comes."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for belongs to programs that know of no event
            await asyncio.sleep(0.005)
