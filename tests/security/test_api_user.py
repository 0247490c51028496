"""What the api's user could do to root, were the api taken over: files, sockets, locks, answers, memory, logs."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from harness import Platform, eventually
from infra.config import LauncherConfig
from infra.launcher import lock, programs, supervisor, told
from infra.launcher.rotation import Bounds
from infra.launcher.supervisor import Program, Reaper, Supervised
from sandboxd.app.server import listen
from sandboxd.contract.messages import Capacity, EnsureSandbox, NodeReport, RuntimeInfo
from sandboxd.heartbeat import ApiUnreachableError, SocketLink

KEY = "sandlot_" + "a" * 39


def test_what_the_api_tells_is_read(tmp_path: Path) -> None:
    path = tmp_path / "url"
    for url in ("http://127.0.0.1:7070", "http://[::1]:7070"):
        path.write_text(url + "\n")
        assert told.url(path) == url
    path.write_text(KEY + "\n")
    assert told.key(path) == KEY


@pytest.mark.parametrize("kind", ["link", "pipe", "socket", "directory", "device", "missing", "endless"])
def test_root_reads_nothing_but_a_short_plain_file(tmp_path: Path, kind: str) -> None:
    """A link is not followed, a pipe is not waited on, an endless file is not held."""
    path, secret = tmp_path / "root-key", tmp_path / "secret"
    secret.write_text(KEY)
    match kind:
        case "link":
            path.symlink_to(secret)
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "endless":
            path.touch()
            os.truncate(path, 1 << 40)
        case _:
            pass
    with pytest.raises(told.UntoldError) as raised:
        told.key(path)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "word",
    [
        "",
        "root:x:0:0",
        "http://169.254.169.254/latest",
        "http://127.0.0.1:1@evil:2",
        "\x1b[2Jhttp://127.0.0.1:1",
        "x" * 300,
    ],
)
def test_root_repeats_nothing_that_is_no_address(tmp_path: Path, word: str) -> None:
    path = tmp_path / "url"
    path.write_text(word)
    with pytest.raises(told.UntoldError) as raised:
        told.url(path)
    assert not word or word not in str(raised.value)


def test_nobody_else_can_hold_the_launchers_lock(tmp_path: Path) -> None:
    """Who holds it is taken for a launcher, and a process whose number stands in it is ended."""
    path = tmp_path / "up.lock"
    path.touch(mode=0o644)
    with lock.hold(path, "t"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_nodes_socket_cannot_be_put_somewhere_else(tmp_path: Path) -> None:
    """What lies where the socket is to be is replaced, not followed."""
    target = tmp_path / "elsewhere"
    target.write_text("kept")
    for name in ("sandboxd.sock", f".sandboxd.sock.{os.getpid()}"):
        (tmp_path / name).symlink_to(target)
    with listen(tmp_path / "sandboxd.sock", "nobody"):
        assert stat.S_ISSOCK((tmp_path / "sandboxd.sock").lstat().st_mode)
    assert target.read_text() == "kept"


@asynccontextmanager
async def lying_api(path: Path, answer: web.StreamResponse | bytes) -> AsyncGenerator[SocketLink]:
    async def take(request: web.Request) -> web.StreamResponse:
        await request.read()
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="application/json")
        return answer

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    link = SocketLink(path)
    try:
        yield link
    finally:
        await link.close()
        await runner.cleanup()


def report() -> NodeReport:
    nothing = Capacity(cpus=0, memory_mib=0, disk_mib=0, sandboxes=0)
    return NodeReport(
        node_id="nod" + "a" * 20,
        name="t",
        contract_version=1,
        version="0",
        runtime=RuntimeInfo(name="runsc", version="0", platform="systrap"),
        epoch=0,
        boot_id="b",
        sequence=1,
        incarnation="i",
        full=True,
        address="unix:/nowhere",
        capacity=nothing,
        used=nothing,
        images=[],
        sandboxes=[],
    )


async def test_a_long_answer_to_a_report_is_read_whole(tmp_path: Path) -> None:
    ids = [f"sbx{number:020d}".translate(str.maketrans("0189", "abcd")) for number in range(20_000)]
    body = b'{"epoch": 1, "acknowledged": ["' + '","'.join(ids).encode() + b'"]}'
    async with lying_api(tmp_path / "api.sock", body) as link:
        assert (await link.send(report())).acknowledged == ids


@pytest.mark.parametrize("kind", ["redirect", "endless", "nonsense"])
async def test_no_answer_makes_the_node_agent_hold_or_ask_more(tmp_path: Path, kind: str) -> None:
    answer: web.StreamResponse | bytes = {
        "redirect": web.Response(status=307, headers={"Location": "/elsewhere"}),
        "endless": b" " * (5 << 20),
        "nonsense": b'{"epoch": "secret"}',
    }[kind]
    async with lying_api(tmp_path / "api.sock", answer) as link:
        with pytest.raises(ApiUnreachableError) as raised:
            await link.send(report())
    assert "secret" not in str(raised.value)


async def test_a_log_written_without_end_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LOG_SECONDS", 0.01)
    log = tmp_path / "thing.log"

    async def never() -> bool:
        return False

    # What is written at the moment of a cut is lost: it says so again until somebody has seen it.
    code = (
        "import os, time\nfor _ in range(3000): os.write(1, b'x' * 1000)\n"
        "while True: os.write(1, b'last'); time.sleep(0.05)"
    )
    program = Program(
        name="thing",
        argv=(sys.executable, "-c", code),
        env=dict(os.environ),
        log=log,
        ready=never,
        stop_seconds=5,
        log_bounds=Bounds(file_bytes=100_000, files=2),
    )
    reaper = Reaper()
    reaper.open()
    thing = Supervised(program=program, reaper=reaper, say=lambda _: None)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(thing.keep())
            await asyncio.to_thread(
                eventually, lambda: log.exists() and _written(log) and log.stat().st_size < 100_000, "cut off"
            )
            await thing.stop()
    finally:
        reaper.close()
    older = sorted(path.name for path in tmp_path.glob("thing.log.*"))
    assert set(older) <= {"thing.log.1", "thing.log.2"}
    assert all((tmp_path / name).stat().st_size <= 100_000 for name in older)


def _written(log: Path) -> bool:
    try:
        return any(b"last" in path.read_bytes() for path in log.parent.glob("thing.log*"))
    except FileNotFoundError:
        return False  # turned over just now


def test_no_program_leaves_its_memory_behind(platform: Platform) -> None:
    """No core dumps, for the programs and all that they start; no debugger of the same user."""
    for name in ("api", "node"):
        pid = platform.pid(name)
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        assert [row.split()[4:6] for row in limits if row.startswith("Max core file size")] == [["0", "0"]]
    # With its memory closed to its own user, the files of /proc that tell of it are root's.
    assert Path(f"/proc/{platform.pid('api')}/environ").stat().st_uid == 0


def test_files_of_root_are_closed_to_the_apis_user(platform: Platform) -> None:
    """Asked as that user, because the modes of all directories above count too."""
    data, run = platform.config.data_dir, platform.config.run_dir
    private = [
        data / "node.key",
        data / "ledger.db",
        platform.config.logs_dir,
        data / "upper",
        run / "runsc",
        run / "up.lock",
    ]
    for path in private:
        assert [as_the_apis_user(platform, "test", right, str(path)) for right in ("-r", "-w")] == [1, 1], path
    assert stat.S_IMODE((data / "node.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((data / "api" / "root-key").stat().st_mode) == 0o600


def test_the_apis_user_cannot_take_the_nodes_socket_away(platform: Platform) -> None:
    path = str(platform.config.node_socket)
    assert as_the_apis_user(platform, "rm", "-f", path) != 0
    assert as_the_apis_user(platform, "mv", path, f"{path}.old") != 0
    assert platform.config.node_socket.is_socket()


def as_the_apis_user(platform: Platform, *command: str) -> int:
    """Run one of the system's programs as that user; its exit code. (Our interpreter may lie in a private home.)"""
    account = platform.config.api_user
    done = subprocess.run(
        command, user=account, group=account, extra_groups=[], cwd="/", capture_output=True, check=False
    )
    return done.returncode


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.timeout_seconds", 10**400),
        ("spec.timeout_seconds", 2**40),
        ("spec.idle_timeout_seconds", 10**400),
        ("generation", 2**70),
        ("epoch", 2**70),
        ("deadline_seconds", 1e308),
        ("spec.hostname", "x" * 100_000),
        ("spec.hostname", "a\nb"),
        ("spec.image.id", "../../../etc/passwd"),
        ("spec.resources", {"cpus": float("inf")}),
        ("spec.resources", {"disk_mib": 2**60}),
    ],
)
def test_no_number_or_name_of_the_apis_reaches_the_node_agent_unchecked(path: str, value: object) -> None:
    """It would meet a clock, the ledger, a file's name, and end the agent: again and again, once written down."""
    body: dict[str, Any] = {
        "generation": 1,
        "epoch": 0,
        "deadline_seconds": 10,
        "spec": {"image": {"id": "img" + "a" * 20, "reference": "base", "digest": "sha256:" + "0" * 64}},
    }
    EnsureSandbox.model_validate_json(json.dumps(body))
    *above, last = path.split(".")
    inner = body
    for step in above:
        inner = inner[step]
    inner[last] = value
    with pytest.raises(ValidationError):
        EnsureSandbox.model_validate_json(json.dumps(body))


def test_no_program_is_told_the_settings_of_another(tmp_path: Path) -> None:
    """The gateway faces everybody; a database's password and a caller's own key are none of its business."""
    env = {
        "SANDLOT_API_KEY": "sandlot_" + "a" * 39,
        "SANDLOT_DATABASE_URL": "postgresql://sandlot:secret@db/sandlot",
        "SANDLOT_GATEWAY_DOMAIN": "boxes.example.com",
        "SANDLOT_IMAGE_STORE": "s3://bucket",
        "OTHER": "x",
    }
    config = LauncherConfig(data_dir=tmp_path)
    told = {
        each.name: each.env for each in (make(config, env) for make in (programs.node, programs.api, programs.gateway))
    }
    assert "SANDLOT_DATABASE_URL" in told["api"]
    assert "SANDLOT_IMAGE_STORE" in told["node"]
    assert told["gateway"]["SANDLOT_GATEWAY_DOMAIN"] == "boxes.example.com"
    for name, strange in (
        ("api", {"SANDLOT_IMAGE_STORE"}),
        ("node", {"SANDLOT_DATABASE_URL"}),
        ("gateway", {"SANDLOT_DATABASE_URL", "SANDLOT_IMAGE_STORE"}),
    ):
        assert not {*strange, "SANDLOT_API_KEY", "OTHER"} & set(told[name])
