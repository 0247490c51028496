"""The node's socket and its heartbeat, in process over fakes: calls, refusals, reports, an api that is away."""

import asyncio
import io
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from node_kit import World, a_sandbox_id, an_ensure, until
from sandboxd.app.assembly import Node, real_parts
from sandboxd.app.node import MAX_BODY_BYTES
from sandboxd.app.run import end_all, serving
from sandboxd.app.server import application, listen, runner
from sandboxd.config import NodeConfig
from sandboxd.contract.messages import NodeReport, ReportAnswer

Calls = aiohttp.ClientSession


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(
        data_dir=tmp_path / "data",
        run_dir=tmp_path / "run",
        runtime="fake",
        instance="he",
        api_user="root",
        heartbeat_seconds=0.2,
        pool_max=0,
        node_name="here",
    )


@asynccontextmanager
async def served(config: NodeConfig) -> AsyncGenerator[tuple[Node, Calls]]:
    async with serving(config, real_parts(config)) as node:
        connector = aiohttp.UnixConnector(path=str(config.node_socket_path))
        async with aiohttp.ClientSession("http://node", connector=connector) as calls:
            yield node, calls


class FakeApi:
    """The api's internal listener."""

    def __init__(self) -> None:
        self.reports: list[NodeReport] = []
        self.answer = ReportAnswer(epoch=1)

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncGenerator[None]:
        async def take(request: web.Request) -> web.Response:
            self.reports.append(NodeReport.model_validate_json(await request.read()))
            return web.json_response(self.answer.model_dump(mode="json"))

        app = web.Application()
        app.router.add_post("/internal/v1/node-reports", take)
        serves = web.AppRunner(app)
        await serves.setup()
        path.parent.mkdir(parents=True, exist_ok=True)
        await web.UnixSite(serves, str(path)).start()
        try:
            yield
        finally:
            await serves.cleanup()

    def seen(self, sandbox_id: str) -> list[str]:
        return [str(one.state) for report in self.reports for one in report.sandboxes if one.id == sandbox_id]


def body(config: NodeConfig, **changes: Any) -> dict[str, Any]:
    return an_ensure(World(config.data_dir), **changes).model_dump(mode="json")


async def test_the_life_of_a_sandbox(config: NodeConfig) -> None:
    async with served(config) as (_, calls):
        path = f"/node/v1/sandboxes/{a_sandbox_id()}"
        async with calls.put(path, json=body(config)) as answer:
            assert answer.status == 200
            created = await answer.json()
        assert created["state"] == "running"
        async with calls.get(path) as answer:
            assert (await answer.json())["state"] == "running"
        async with calls.patch(path, json={"generation": 2, "epoch": 0, "timeout_seconds": None}) as answer:
            assert (await answer.json())["expires_at"] is None
        public = path.removeprefix("/node")
        async with calls.post(f"{public}/run", json={"argv": ["echo", "hi"]}) as answer:
            assert (await answer.json())["stdout"] == "hi\n"
        async with calls.delete(path, params={"generation": "3", "epoch": "0", "reason": "evicted"}) as answer:
            ended = await answer.json()
        assert (ended["state"], ended["reason"]) == ("failed", "evicted")
        async with calls.post(f"{public}/run", json={"argv": ["true"]}) as answer:
            problem = await answer.json()
        assert (answer.status, problem["code"], problem["reason"]) == (410, "sandbox_ended", "evicted")
        assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/node/v1/sandboxes/nonsense", None, 404, "sandbox_not_found"),
        ("GET", f"/node/v1/sandboxes/sbx{'a' * 20}", None, 404, "sandbox_not_found"),
        ("GET", f"/node/v1/sandboxes/sbx{'a' * 20}?surprise=1", None, 422, "invalid_request"),
        ("PUT", f"/node/v1/sandboxes/sbx{'a' * 20}", b"{", 400, "malformed_request"),
        ("PUT", f"/node/v1/sandboxes/sbx{'a' * 20}", b"{}", 422, "invalid_request"),
        ("PUT", f"/node/v1/sandboxes/sbx{'a' * 20}", b" " * (MAX_BODY_BYTES + 1), 413, "body_too_large"),
        ("PATCH", f"/node/v1/sandboxes/sbx{'a' * 20}", b'{"generation": 1, "epoch": 0}', 404, "sandbox_not_found"),
        (
            "PATCH",
            f"/node/v1/sandboxes/sbx{'a' * 20}",
            b'{"generation": 1, "epoch": 0, "x": 1}',
            422,
            "invalid_request",
        ),
        ("DELETE", f"/node/v1/sandboxes/sbx{'a' * 20}?generation=1", None, 404, "sandbox_not_found"),
        ("DELETE", f"/node/v1/sandboxes/sbx{'a' * 20}?reason=out_of_memory", None, 422, "invalid_request"),
        ("DELETE", f"/node/v1/sandboxes/sbx{'a' * 20}?grace_seconds=-1", None, 422, "invalid_request"),
        ("POST", "/node/v1/report", b"", 405, "method_not_allowed"),
        ("GET", "/elsewhere", None, 404, "route_not_found"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(
    config: NodeConfig, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    data = None if content is None else io.BytesIO(content)
    async with served(config) as (_, calls), calls.request(method, path, data=data) as answer:
        problem = await answer.json()
        assert (answer.status, problem["code"]) == (status, code)


async def test_a_client_that_vanishes_leaves_the_start_alone(config: NodeConfig) -> None:
    async with served(config) as (node, calls):
        sandbox_id = a_sandbox_id()
        runtime: Any = node.parts.runtime
        runtime.world.fail("create", "hang")
        with pytest.raises(TimeoutError):
            async with calls.put(
                f"/node/v1/sandboxes/{sandbox_id}", json=body(config), timeout=aiohttp.ClientTimeout(total=0.1)
            ):
                pass
        life = node.manager.runners[sandbox_id].life
        assert life.cause is None
        async with calls.delete(f"/node/v1/sandboxes/{sandbox_id}") as answer:
            assert (await answer.json())["state"] == "stopped"


async def test_the_socket_is_for_the_api_alone(config: NodeConfig) -> None:
    async with served(config):
        assert stat.S_IMODE(config.node_socket_path.stat().st_mode) == 0o660


async def test_a_stranger_is_refused(tmp_path: Path) -> None:
    async def never(_: web.Request) -> web.Response:
        raise AssertionError("reached")

    serves = runner(application({os.getuid() + 1}, [web.get("/", never)]))
    await serves.setup()
    await web.SockSite(serves, listen(tmp_path / "s.sock", "root")).start()
    connector = aiohttp.UnixConnector(path=str(tmp_path / "s.sock"))
    async with aiohttp.ClientSession("http://node", connector=connector) as calls, calls.get("/") as answer:
        assert answer.status == 401
    await serves.cleanup()


async def test_a_stale_socket_is_replaced(config: NodeConfig) -> None:
    config.node_socket_path.parent.mkdir(parents=True)
    config.node_socket_path.write_text("stale")
    async with served(config) as (_, calls), calls.get("/node/v1/report") as answer:
        report = NodeReport.model_validate_json(await answer.read())
        assert (report.name, report.full, report.runtime.name) == ("here", True, "fake")


async def test_reports_reach_the_api_and_are_acknowledged(config: NodeConfig) -> None:
    api = FakeApi()
    async with api.listening(config.api_socket_path), served(config) as (node, calls):
        await until(lambda: bool(api.reports))
        assert api.reports[0].full
        sandbox_id = a_sandbox_id()
        async with calls.put(f"/node/v1/sandboxes/{sandbox_id}", json=body(config, epoch=1)):
            pass
        await until(lambda: "running" in api.seen(sandbox_id))
        async with calls.delete(f"/node/v1/sandboxes/{sandbox_id}"):
            pass
        await until(lambda: "stopped" in api.seen(sandbox_id))
        api.answer = ReportAnswer(epoch=7, acknowledged=[sandbox_id])
        await until(lambda: sandbox_id not in node.manager.runners)
        await until(lambda: node.manager.epoch == 7)
        sequences = [report.sequence for report in api.reports]
        assert sequences == sorted(set(sequences))
        assert len({report.incarnation for report in api.reports}) == 1


async def test_the_api_can_have_one_buried(config: NodeConfig) -> None:
    api = FakeApi()
    async with api.listening(config.api_socket_path), served(config) as (_, calls):
        sandbox_id = a_sandbox_id()
        async with calls.put(f"/node/v1/sandboxes/{sandbox_id}", json=body(config)):
            pass
        api.answer = ReportAnswer(epoch=1, bury=[sandbox_id])
        await until(lambda: "stopped" in api.seen(sandbox_id))


async def test_an_api_that_comes_late_hears_everything(config: NodeConfig) -> None:
    api = FakeApi()
    async with served(config) as (_, calls):
        sandbox_id = a_sandbox_id()
        async with calls.put(f"/node/v1/sandboxes/{sandbox_id}", json=body(config)) as answer:
            assert answer.status == 200
        async with api.listening(config.api_socket_path):
            await until(lambda: bool(api.reports))
            assert api.reports[0].full
            assert api.seen(sandbox_id)[0] == "running"


async def test_the_node_stays_itself(config: NodeConfig) -> None:
    async def node_id() -> str:
        async with served(config) as (_, calls), calls.get("/node/v1/report") as answer:
            return (await answer.json())["node_id"]

    assert await node_id() == await node_id()
    assert stat.S_IMODE((config.data_dir / "node.key").stat().st_mode) == 0o600
    (config.data_dir / "node.key").write_bytes(b"short")
    with pytest.raises(ValueError, match="damaged"):
        await node_id()


async def test_down_ends_everything(config: NodeConfig) -> None:
    # The fake's sandboxes die with their agent, so the end they come to is the agent's.
    async with served(config) as (node, calls):
        sandbox_id = a_sandbox_id()
        async with calls.put(f"/node/v1/sandboxes/{sandbox_id}", json=body(config)):
            pass
        assert node.manager.admission.used().sandboxes == 1
    async with asyncio.timeout(30):
        await end_all(config)
    assert list(config.upper_dir.iterdir()) == []
