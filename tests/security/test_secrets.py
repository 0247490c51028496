"""Secrets stay where they are needed: not in logs, command lines, runsc's state, the ledger, the database or images."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from harness import Platform, platform


def _hits(needles: dict[str, str], content: bytes) -> list[str]:
    return [name for name, secret in needles.items() if secret.encode() in content]


def _files(*roots: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield every file of ours with its content, but for images."""
    for path in (each for root in roots for each in root.rglob("*")):
        if path.suffix == ".erofs" or path.is_symlink() or not path.is_file():
            continue
        try:
            yield path, path.read_bytes()
        except OSError:
            continue  # replaced meanwhile, or the pin of a namespace


def in_files(needles: dict[str, str], *roots: Path) -> list[str]:
    return [f"{name} in {path}" for path, content in _files(*roots) for name in _hits(needles, content)]


def in_processes(needles: dict[str, str]) -> list[str]:
    """Search what any user of the host may read, and the environment that root may."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        for name in ("cmdline", "environ"):
            try:
                content = (process / name).read_bytes()
            except OSError:
                continue  # it has ended meanwhile
            found += [f"{secret} in {name} of {process.name}" for secret in _hits(needles, content)]
    return found


@pytest.fixture(scope="module", name="chatty")
def _chatty() -> Iterator[Platform]:
    """A platform that logs all it can."""
    with platform(log_level="debug", heartbeat_seconds="0.5") as started:
        yield started


def test_secrets_are_nowhere_but_where_they_are_used(chatty: Platform) -> None:
    needles = {name: secrets.token_hex(16) for name in ("env", "argument", "input", "file", "output", "own env", "tag")}
    sandbox = chatty.create(env={"TOKEN": needles["env"]})["id"]
    base = f"/v1/sandboxes/{sandbox}"
    shell = f"echo {needles['argument']} >/dev/null; printf '%s' $TOKEN $OWN; cat; sleep 600"
    body = {"shell": shell, "env": {"OWN": needles["own env"]}, "stdin": True, "tag": needles["tag"]}
    process = chatty.http.post(f"{base}/processes", json=body).raise_for_status().json()["id"]
    chatty.http.post(f"{base}/processes/{process}/stdin", content=needles["input"].encode()).raise_for_status()

    def printed() -> bool:
        text = chatty.http.get(f"{base}/processes/{process}/output").text
        return needles["env"] in text and needles["own env"] in text and needles["input"] in text

    chatty.wait_until(printed, "the secrets inside")  # the search would find them if they were there
    once = chatty.http.post(
        "/v1/run",
        json={
            "env": {"TOKEN": needles["env"]},
            "files": [{"path": "secret", "text": needles["file"]}],
            "command": {"shell": f"cat secret; echo {needles['output']}; exit 3", "input": needles["input"]},
        },
    )
    assert once.json()["exit_code"] == 3
    # Refused, with secrets in all the wrong places.
    chatty.http.post("/v1/sandboxes", json={"env": {"TOKEN": [needles["env"]]}, needles["own env"]: 1})
    chatty.http.post(f"{base}/run", json={"argv": [needles["argument"], "\0"]})
    httpx.get(f"{chatty.url}/v1/me", params={"key": needles["env"]}, headers={"Authorization": "Bearer sandlot_x"})

    config = chatty.config
    platform_wide = needles | {"root key": chatty.key}
    found = [
        hit
        for hit in in_files(platform_wide, config.data_dir, config.run_dir)
        # The root key's own file and the line the launcher prints for its owner; what a sandbox writes is its own.
        if not hit.endswith((str(config.key_path), "launcher.log"))
        and "/upper/" not in hit
        # A log holds what its programs printed, and nothing of how they were started.
        and not ("/history/logs/" in hit and not hit.startswith(("argument ", "tag ", "root key ")))
    ]
    found += in_processes(platform_wide)
    assert found == []
    assert chatty.http.delete(base, params={"grace_seconds": 0}).status_code == 200


def test_a_guests_token_and_the_nodes_key_are_nowhere_else(chatty: Platform) -> None:
    chatty.create()
    key = (chatty.config.data_dir / "node.key").read_bytes()
    assert len(key) == 32
    assert (chatty.config.data_dir / "node.key").stat().st_mode & 0o777 == 0o600
    needles = {"node key": key.hex()}
    places = (chatty.config.data_dir, chatty.config.run_dir)
    assert in_files(needles, *places) == []
    assert [path for path, content in _files(*places) if key in content] == [chatty.config.data_dir / "node.key"]
    assert in_processes(needles) == []


def test_only_their_owners_read_what_is_private(chatty: Platform) -> None:
    chatty.create()
    private = [chatty.config.key_path, *chatty.config.data_dir.glob("ledger.db*"), *chatty.config.logs_dir.iterdir()]
    assert [str(path) for path in private if path.stat().st_mode & 0o007] == []
    for directory in (chatty.config.runtime_dir, chatty.config.data_dir / "api"):
        assert directory.stat().st_mode & 0o777 == 0o700
