"""Sandboxes and processes through the client, blocking and async, and how it finds its server."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

import sandlot
from sandlot import (
    AsyncClient,
    AsyncSandbox,
    AuthenticationError,
    Client,
    ConfigurationError,
    ProcessEndedError,
    ProcessFailedError,
    ProcessNotFoundError,
    Resources,
    RetryPolicy,
    Sandbox,
    SandboxEndedError,
    SandboxNotFoundError,
)
from sandlot.settings import load
from stub_api import Fault, StubApi, running

_FAST = RetryPolicy(attempts=3, first_seconds=0)
_CLIENT = Path(__file__).resolve().parents[2] / "clients" / "python"


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


@pytest.fixture
def client(api: StubApi) -> Iterator[Client]:
    with Client(api.url, api.key, retries=_FAST) as client:
        yield client


def test_sync_is_derived_from_async() -> None:
    done = subprocess.run(
        [sys.executable, str(_CLIENT / "unasync.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in (_CLIENT / "sandlot" / "_sync").glob("*.py"):
        words = path.read_text().replace("_async by unasync.py", "").split()
        assert not {"async", "await"} & set(words), path


def test_examples_in_docstrings_hold(api: StubApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDLOT_URL", api.url)
    monkeypatch.setenv("SANDLOT_API_KEY", api.key)
    tried = 0
    names = [module.name for module in pkgutil.walk_packages(sandlot.__path__, "sandlot.")]
    for name in ["sandlot", *(name for name in names if not name.endswith("__main__"))]:
        results = doctest.testmod(importlib.import_module(name))
        assert results.failed == 0, name
        tried += results.attempted
    assert tried > 10


def test_a_block_ends_what_it_created_and_only_lets_go_of_what_it_found(api: StubApi, client: Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        with Sandbox.get(sandbox.id, client=client) as same:
            assert same.run("true-ish", wait_seconds=0).running
        assert api.sandboxes[sandbox.id]["state"] == "running"
    assert api.sandboxes[sandbox.id]["state"] == "stopped"
    sandbox.close()
    assert len(api.seen(f"DELETE /v1/sandboxes/{sandbox.id}")) == 1


def test_create_sends_what_was_given_and_nothing_else(api: StubApi, client: Client) -> None:
    Sandbox.create(client=client)
    assert api.requests[-1].json == {"image": "base", "wait_seconds": 60}
    Sandbox.create(
        "python",
        name="n",
        env={"A": "1"},
        metadata={"team": "x"},
        user="root",
        cwd="/srv",
        resources=Resources(cpus=0.5),
        timeout_seconds=None,
        idle_timeout_seconds=60,
        egress="blocked",
        wait=False,
        client=client,
    )
    assert api.requests[-1].json == {
        "image": "python",
        "name": "n",
        "env": {"A": "1"},
        "metadata": {"team": "x"},
        "user": "root",
        "cwd": "/srv",
        "resources": {"cpus": 0.5},
        "timeout_seconds": None,
        "idle_timeout_seconds": 60,
        "egress": {"mode": "blocked"},
        "wait_seconds": 0,
    }


def test_create_waits_until_it_runs(api: StubApi, client: Client) -> None:
    api.settles_after = 3
    assert Sandbox.create(client=client).info.state == "running"


def test_a_sandbox_that_ends_while_it_starts_is_an_error_with_the_reason(api: StubApi, client: Client) -> None:
    api.settles_after = 5
    ended = {"id": "sbx" + "a" * 20, "state": "failed", "reason": "start_failed", "message": "no"}
    api.faults.append(Fault("GET /v1/sandboxes/sbxaaaaaaaaaaaaaaaaaaa2", 200, ended))
    with pytest.raises(SandboxEndedError) as caught:
        Sandbox.create(client=client)
    assert caught.value.reason == "start_failed"
    assert len([one for one in api.requests if one.method == "DELETE"]) == 1


def test_list_walks_every_page(api: StubApi, client: Client) -> None:
    ids = [api.add_sandbox()["id"] for _ in range(5)]
    assert [info.id for info in Sandbox.list(client=client)] == ids
    assert [info.id for info in Sandbox.list(state=["running", "stopped"], metadata={"a": "b"}, client=client)] == ids
    assert api.requests[-1].query["metadata.a"] == ["b"]
    assert api.requests[-1].query["state"] == ["running", "stopped"]


def test_processes(api: StubApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    process = sandbox.start(["waits"], tag="job", env={"K": "v"}, timeout_seconds=9)
    assert [one.id for one in sandbox.processes(tag="job")] == [process.id]
    assert sandbox.process(process.id).pid == process.pid == 7
    assert process.result().running
    process.signal("SIGTERM")
    assert process.wait().exit_code == 143
    assert process.refresh().state == "ended"
    with pytest.raises(ProcessEndedError) as caught:
        process.signal("SIGTERM")
    assert caught.value.members["exit_code"] == 143
    with pytest.raises(ProcessNotFoundError):
        sandbox.process("prc" + "q" * 20)
    assert len({one.headers["idempotency-key"] for one in api.seen("/signal")}) == 2


def test_a_failed_command_is_a_result_unless_asked_otherwise(client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    result = sandbox.run(["missing"])
    assert (result.exit_code, result.reason, result.ok) == (127, "not_started", False)
    assert result.start_error is not None
    with pytest.raises(ProcessFailedError) as caught:
        sandbox.run(["exit", "4"], check=True)
    assert caught.value.exit_code == 4
    assert sandbox.run("text for a shell", input=b"\xff", wait_seconds=0).running


def test_an_ended_sandbox_is_an_error_never_an_exit_code(client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    sandbox.stop(grace_seconds=0)
    sandbox.extend(60)
    with pytest.raises(SandboxEndedError) as caught:
        sandbox.run(["echo"])
    assert caught.value.reason == "requested"


def test_ids_cannot_change_the_path(api: StubApi, client: Client) -> None:
    with pytest.raises(SandboxNotFoundError):
        Sandbox.get("../me", client=client)
    assert api.requests[-1].path == "/v1/sandboxes/../me"


async def test_the_async_client_does_the_same(api: StubApi) -> None:
    async with AsyncClient(api.url, api.key, retries=_FAST) as client:
        async with await AsyncSandbox.create(client=client) as sandbox:
            assert (await sandbox.run(["echo", "hi"])).stdout == "hi\n"
            process = await sandbox.start(["cat"], stdin=True)
            await process.write_stdin("abc", close=True)
            assert (await process.wait()).stdout == "abc"
            assert [one.id async for one in AsyncSandbox.list(client=client)] == [sandbox.id]
        assert api.sandboxes[sandbox.id]["state"] == "stopped"


async def test_a_cancelled_block_still_ends_its_sandbox(api: StubApi) -> None:
    async with AsyncClient(api.url, api.key, retries=_FAST) as client:
        with anyio.CancelScope() as scope:
            async with await AsyncSandbox.create(client=client) as sandbox:
                process = await sandbox.start(["waits"])
                scope.cancel()
                await process.wait()
        assert [one["state"] for one in api.sandboxes.values()] == ["stopped"]


def test_a_sandbox_without_a_client_makes_and_closes_its_own(api: StubApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDLOT_URL", api.url)
    monkeypatch.setenv("SANDLOT_API_KEY", api.key)
    with Sandbox.create() as sandbox:
        assert [info.id for info in Sandbox.list()] == [sandbox.id]
        Sandbox.get(sandbox.id).close()
    monkeypatch.setenv("SANDLOT_API_KEY", "sandlot_wrong")
    with pytest.raises(AuthenticationError):
        Sandbox.create()


def test_settings_come_from_arguments_then_variables_then_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sandlot" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"url": "http://file", "api_key": "file-key"}))
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert load(environ=home).url == "http://file"
    assert load(environ=home).api_key == "file-key"
    both = home | {"SANDLOT_URL": "http://env", "SANDLOT_API_KEY": "env-key"}
    assert load(environ=both).api_key == "env-key"
    assert load("http://given", "given-key", both).url == "http://given"
    assert "given-key" not in repr(load("http://given", "given-key", both))


def test_a_stored_key_goes_to_its_own_server_only(tmp_path: Path) -> None:
    file = tmp_path / "sandlot" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"url": "http://file", "api_key": "file-key"}))
    with pytest.raises(ConfigurationError, match="no API key"):
        load(environ={"XDG_CONFIG_HOME": str(tmp_path), "SANDLOT_URL": "http://other"})


@pytest.mark.parametrize("text", ["{", "[]", '{"url": 5}'])
def test_a_broken_configuration_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sandlot" / "config.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ConfigurationError):
        load(environ={"XDG_CONFIG_HOME": str(tmp_path)})


@pytest.mark.parametrize(("url", "key"), [("ftp://x", "k"), ("http://x", "k\n"), ("http://x", "k\u00e9")])
def test_unusable_settings_are_refused(url: str, key: str) -> None:
    with pytest.raises(ConfigurationError):
        load(url, key, {})
