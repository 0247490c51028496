"""Secrets of a project are where a sandbox was given them and nowhere else, however it was started."""

import os
import secrets
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_secrets import in_files, in_processes

from harness import Platform, platform


@pytest.fixture(scope="module", name="chatty")
def _chatty() -> Iterator[Platform]:
    """A platform that logs all it can, and has sandboxes ready."""
    with platform(log_level="debug", heartbeat_seconds="0.5") as started:
        yield started


def put(chatty: Platform, name: str, value: str, **more: object) -> None:
    chatty.http.put(f"/v1/secrets/{name}", json={"value": value, **more}).raise_for_status()


def printed(chatty: Platform, sandbox: str, **more: object) -> str:
    body = {"shell": 'printf "%s." "$TOKEN"', **more}
    return chatty.http.post(f"/v1/sandboxes/{sandbox}/run", json=body).raise_for_status().json()["stdout"]


def test_values_are_nowhere_but_inside(chatty: Platform) -> None:
    needles = {"stored": secrets.token_hex(16), "used": secrets.token_hex(16)}
    put(chatty, "STORED", needles["stored"], hosts=["api.example.com"])
    put(chatty, "USED", needles["used"], env=True)
    ids = [chatty.create(secret_env={"TOKEN": "USED"})["id"] for _ in range(3)]
    for sandbox in ids:
        body = {"shell": 'test -n "$TOKEN" && echo it is there && exec sleep 600'}
        base = f"/v1/sandboxes/{sandbox}/processes"
        process = chatty.http.post(base, json=body).raise_for_status().json()["id"]
        chatty.wait_until(
            lambda base=base, process=process: "there" in chatty.http.get(f"{base}/{process}/output").text,
            "a process that has the secret",
        )
    once = chatty.http.post(
        "/v1/run", json={"secret_env": {"TOKEN": "USED"}, "command": {"shell": "test ${#TOKEN} = 32"}}
    )
    assert once.raise_for_status().json()["exit_code"] == 0
    # Refused, with values in all the wrong places.
    for path in ("/v1/secrets/USED", "/v1/sandboxes"):
        chatty.http.request("PUT" if "secrets" in path else "POST", path, json={"value": [needles["used"]], "x": 1})
    listed = chatty.http.get("/v1/secrets").text + chatty.http.get(f"/v1/sandboxes/{ids[0]}").text
    assert not [name for name, value in needles.items() if value in listed]
    assert in_files(needles, chatty.config.data_dir, chatty.config.run_dir) == []
    assert in_processes(needles) == []


def test_a_process_sees_them_unless_it_shall_not(chatty: Platform) -> None:
    value = secrets.token_hex(16)
    put(chatty, "SEEN", value, env=True)
    sandbox = chatty.create(env={"TOKEN": "plain"}, secret_env={"TOKEN": "SEEN"})["id"]
    assert printed(chatty, sandbox) == f"{value}."
    assert printed(chatty, sandbox, with_secrets=False) == "plain."
    assert printed(chatty, sandbox, env={"TOKEN": "own"}) == "own."
    put(chatty, "SEEN", "newer", env=True)
    assert printed(chatty, sandbox) == f"{value}."
    assert printed(chatty, chatty.create(secret_env={"TOKEN": "SEEN"})["id"]) == "newer."
    assert chatty.http.delete("/v1/secrets/SEEN").json()["code"] == "in_use"


def test_a_restart_of_the_node_loses_none(chatty: Platform) -> None:
    value = secrets.token_hex(16)
    put(chatty, "KEPT", value, env=True)
    sandbox = chatty.create(secret_env={"TOKEN": "KEPT"})["id"]
    os.kill(chatty.pid("node"), signal.SIGKILL)
    chatty.wait_ready()
    assert printed(chatty, sandbox) == f"{value}."
    needles = {"value": value}
    assert [
        hit for hit in in_files(needles, chatty.config.data_dir, chatty.config.run_dir) if "/history/" not in hit
    ] == []


def test_the_database_alone_opens_nothing(chatty: Platform, tmp_path: Path) -> None:
    value = secrets.token_hex(16)
    put(chatty, "SEALED", value)
    copy = tmp_path / "api.db"
    with sqlite3.connect(chatty.config.data_dir / "api" / "api.db") as database, sqlite3.connect(copy) as target:
        database.backup(target)
    [sealed] = [row[0] for row in target.execute("SELECT sealed FROM secrets WHERE name = 'SEALED'")]
    database.close()
    target.close()
    assert value.encode() not in copy.read_bytes()
    assert len(sealed) > len(value)
    keys = chatty.config.data_dir / "api" / "secret-keys"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert keys.stat().st_uid == (chatty.config.data_dir / "api").stat().st_uid
