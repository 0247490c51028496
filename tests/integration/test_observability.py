"""Alerts and dashboard ask for nothing that is not there; the metrics say what happens."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api.services.metrics import Metrics
from infra.launcher.node_socket import NodeSilentError, ask
from infra.setup.places import REPOSITORY
from node_kit import World, a_sandbox_id, a_stop, an_ensure, node, problem_of
from sandboxd.app.assembly import real_parts
from sandboxd.app.metrics import Meters
from sandboxd.app.run import serving
from sandboxd.config import NodeConfig
from sandboxd.runner.failure import Failure
from sandboxd.runtime.base import RuntimeEnd

HOME: Final = REPOSITORY / "infra" / "observability"
NAME: Final = re.compile(r"\bsandlot_[a-z_]+")
SUFFIXES: Final = ("", "_total", "_bucket", "_sum", "_count")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def names(text: bytes) -> set[str]:
    """Return the names of the series that may be asked for."""
    families = list(text_string_to_metric_families(text.decode()))
    return {sample.name for family in families for sample in family.samples} | {
        f"{family.name}{suffix}"
        for family in families
        for suffix in {"counter": ("_total",), "histogram": SUFFIXES[2:], "gauge": ("",)}[family.type]
    }


def value(text: bytes, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


@pytest.fixture
async def known(world: World) -> set[str]:
    async with node(world) as opened:
        node_text = Meters(opened.manager, world.host, version="0", runtime="0").render()
    return names(node_text) | names(Metrics().render())


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((HOME / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return json.loads((HOME / "grafana.json").read_text())["panels"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in alerts())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


async def test_everything_asked_for_exists(known: set[str]) -> None:
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(asked) > 15
    assert asked <= known


async def test_every_metric_of_a_node_is_on_the_dashboard(known: set[str]) -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    assert {name for name in known if name.startswith("sandlot_node_") and name not in shown} == set()


def test_alerts_are_whole() -> None:
    page = (REPOSITORY / "docs" / "operate.md").read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    seen: set[str] = set()
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert rule["alert"] not in seen
        seen.add(rule["alert"])
        assert re.fullmatch(r"Sandlot[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in {"page", "ticket"}
        place, _, anchor = rule["annotations"]["what_to_do"].partition("#")
        assert (place, anchor in anchors) == ("docs/operate.md", True), anchor
        assert rule["annotations"]["summary"].endswith(".")
        assert balanced(rule["expr"]), rule["expr"]


def test_the_dashboard_is_whole() -> None:
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in panels()]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert all(balanced(target["expr"]) for panel in panels() for target in panel["targets"])


def test_the_scrape_config_names_the_rules() -> None:
    document = yaml.safe_load((HOME / "prometheus.yml").read_text())
    assert document["rule_files"] == ["alerts.yml"]
    jobs = {job["job_name"] for job in document["scrape_configs"]}
    asked = {job for expression in expressions() for job in re.findall(r'job="([^"]+)"', expression)}
    assert asked <= jobs


def balanced(expression: str) -> bool:
    return all(expression.count(one) == expression.count(other) for one, other in ("()", "[]", "{}"))


async def test_what_happens_is_counted(world: World) -> None:
    async with node(world) as opened:
        meters = Meters(opened.manager, world.host, version="0.1.0", runtime="r")
        sandbox_id = await opened.create()
        world.points.at("launch.start")
        await problem_of(opened.manager.ensure(a_sandbox_id(), an_ensure(world)))
        text = meters.render()
        assert value(text, "sandlot_node_sandboxes", state="running") == 1
        assert value(text, "sandlot_node_starts_total", outcome="running") == 1
        assert value(text, "sandlot_node_starts_total", outcome="failed") == 1
        assert value(text, "sandlot_node_ends_total", reason="start_failed") == 1
        world.ledger.broken = True
        await problem_of(opened.manager.ensure(a_sandbox_id(), an_ensure(world)))
        world.ledger.broken = False
        assert (value(meters.render(), "sandlot_node_ledger_write_errors_total") or 0) >= 1
        world.host.memory_available = 1
        assert value(meters.render(), "sandlot_node_pressure") == 1
    async with node(world) as opened:
        meters = Meters(opened.manager, world.host, version="0.1.0", runtime="r")
        assert value(meters.render(), "sandlot_node_adoptions", outcome="adopted") == 1
        await opened.manager.stop(sandbox_id, a_stop())
        assert value(meters.render(), "sandlot_node_ends_total", reason="requested", state="stopped") == 1


async def test_what_was_seen_of_a_failure_is_kept(world: World) -> None:
    async with node(world) as opened:
        died, stopped = await opened.create(), await opened.create()
        world.host_world.end(died, RuntimeEnd(signal=11), panic=True)
        await opened.over(died)
        await opened.manager.stop(stopped, a_stop())
    directory = world.config.data_dir / "failures"
    assert [path.stem for path in directory.glob("*.json")] == [died]
    document = json.loads((directory / f"{died}.json").read_text())
    assert set(Failure.__dataclass_fields__) <= set(document)
    assert (document["reason"], document["panic_log"]) == ("runtime_failed", "panic: as asked for")


async def test_a_failure_that_cannot_be_kept_changes_nothing(world: World) -> None:
    (world.config.data_dir / "failures").write_text("in the way")
    async with node(world) as opened:
        sandbox_id = await opened.create()
        world.host_world.end(sandbox_id, RuntimeEnd(signal=11))
        assert (await opened.over(sandbox_id)).record.intent == "runtime_failed"
    assert world.residue() == []


@asynccontextmanager
async def listening(tmp_path: Path, port: int) -> AsyncGenerator[NodeConfig]:
    config = NodeConfig(data_dir=tmp_path, run_dir=tmp_path / "run", runtime="fake", node_metrics_port=port)
    async with serving(config, real_parts(config)):
        yield config


async def test_the_node_has_a_listener_for_metrics_and_nothing_else(tmp_path: Path, unused_port: int) -> None:
    async with listening(tmp_path, unused_port) as config, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{unused_port}"
        async with session.get(f"{url}/metrics") as answer:
            assert answer.status == 200
            assert "sandlot_node_info" in await answer.text()
        for path in ("/node/v1/report", "/node/v1/ledger", "/v1/sandboxes"):
            async with session.get(url + path) as answer:
                assert answer.status == 404
        connector = aiohttp.UnixConnector(str(config.node_socket_path))
        async with aiohttp.ClientSession(connector=connector) as own:
            async with own.get("http://node/node/v1/metrics") as answer:
                assert answer.status == 200
            async with own.get("http://node/node/v1/ledger") as answer:
                assert (await answer.read()).startswith(b"SQLite format 3\0")


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast("int", probe.getsockname()[1])


async def test_the_api_user_gets_no_ledger(tmp_path: Path) -> None:
    """Asked as another user of the same socket: as the api could."""
    config = NodeConfig(data_dir=tmp_path, run_dir=tmp_path / "run", runtime="fake", api_user="nobody")
    async with serving(config, real_parts(config)):
        socket_path = config.node_socket_path
        for path in (tmp_path, *tmp_path.parents[:2], socket_path.parent, socket_path.parent.parent):
            path.chmod(0o755)
        socket_path.chmod(0o666)  # there is no group of that name: who may open it is not what is asked here
        answers = [await asked_as_nobody(socket_path, path) for path in ("ledger", "metrics", "report")]
    assert answers == [401, 401, 200]


async def asked_as_nobody(path: Path, name: str) -> int:
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(f'GET /node/v1/{sys.argv[2]} HTTP/1.1\\r\\nHost: n\\r\\nConnection: close\\r\\n\\r\\n'.encode())\n"
        "print(s.recv(64).split()[1].decode())"
    )
    running = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-c", code, str(path), name, user="nobody", group="nogroup", extra_groups=[], stdout=-1
    )
    out, _ = await running.communicate()
    return int(out)


async def test_a_socket_that_is_not_roots_is_not_asked(tmp_path: Path) -> None:
    """While no node agent runs, the api's user may put a socket in its place, and answer what it likes."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX)\n"
        "s.bind(sys.argv[1]); s.listen(); print('up', flush=True)\n"
        "while True: c = s.accept()[0]; c.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\nlies'); c.close()"
    )
    command = ["/usr/bin/python3", "-c", code, str(place / "node.sock")]
    lying = await asyncio.create_subprocess_exec(
        *command, user="nobody", group="nogroup", extra_groups=[], stdout=asyncio.subprocess.PIPE
    )
    try:
        assert lying.stdout is not None
        await lying.stdout.readline()
        with pytest.raises(NodeSilentError, match="not root"):
            await asyncio.to_thread(ask, place / "node.sock", "/node/v1/ledger", most_bytes=100)
    finally:
        lying.kill()
        await lying.communicate()
