"""From inside a real sandbox: an allowlist of names is what it reaches; what it was refused is told with its rule."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest

from harness import Platform, eventually
from names_kit import Zone, answering
from outside_kit import Outside

PORTS: Final = (80, 443, 5432, 22)
DNS_ADDRESS: Final = "127.77.0.53"

TALK: Final = """
import socket, sys
host, port, text = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode().decode("unicode_escape").encode("latin-1")
try:
    with socket.create_connection((host, port), timeout=20) as end:
        end.sendall(text)
        print("heard" if end.recv(1000) == text else "closed")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def outside(tmp_path: Path) -> Generator[Outside]:
    made = Outside(tmp_path)
    with made.serving(*PORTS):
        yield made


@pytest.fixture
def zone(outside: Outside) -> Generator[Zone]:
    names = {"pkg.test": [outside.one], "a.cdn.test": [outside.one], "evil.test": [outside.other]}
    made = Zone(names=names | {"db.test": [outside.other], "metadata.test": ["169.254.169.254"]})
    with answering(made, DNS_ADDRESS):
        yield made


@pytest.fixture
def naming(outside: Outside, zone: Zone, start_platform: Callable[..., Platform]) -> Platform:
    assert zone
    return start_platform(
        egress_exceptions=outside.setting,
        upstream_resolvers=json.dumps([DNS_ADDRESS]),
        pool_size="0",
        pool_max="0",
    )


def run(platform: Platform, sandbox: str, *argv: str) -> dict[str, Any]:
    body = {"argv": list(argv), "timeout_seconds": 60}
    answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def talk(platform: Platform, sandbox: str, host: str, port: int, text: str) -> str:
    return run(platform, sandbox, "python3", "-c", TALK, host, str(port), text)["stdout"].strip()


def head(host: str) -> str:
    return f"GET / HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n"


def decisions(platform: Platform, sandbox: str, **query: str) -> list[dict[str, Any]]:
    return platform.http.get(f"/v1/sandboxes/{sandbox}/egress/decisions", params=query).json()["items"]


def test_names_are_reached_by_name_and_every_refusal_is_told(naming: Platform, outside: Outside, zone: Zone) -> None:
    allow = ["pkg.test", "*.cdn.test", "db.test:5432", f"{outside.one}:22"]
    sandbox = naming.create(egress={"mode": "allowlist", "allow": allow})["id"]
    for host in ("pkg.test", "a.cdn.test", "PKG.test."):
        assert talk(naming, sandbox, host, 80, head(host)) == "heard"
    assert talk(naming, sandbox, "db.test", 5432, "SELECT 1") == "heard"
    assert talk(naming, sandbox, outside.one, 22, "SSH-2.0") == "heard"
    asked = list(zone.asked)

    refused = run(naming, sandbox, "python3", "-c", TALK, "secret.evil.test", "80", head("secret.evil.test"))
    assert refused["stdout"].strip() == "gaierror"
    (denied,) = refused["egress_denied"]
    assert (denied["name"], denied["via"], denied["reason"]) == ("secret.evil.test", "resolver", "not_allowed")
    assert "PUT" in refused["hint"]
    assert zone.asked == asked  # nobody was asked

    assert talk(naming, sandbox, outside.other, 80, head("evil.test")) == "ConnectionResetError"
    assert talk(naming, sandbox, outside.other, 80, head("pkg.test")) == "heard"  # but by pkg.test's own server
    assert talk(naming, sandbox, outside.other, 22, "SSH-2.0") in {"ConnectionRefusedError", "OSError"}
    assert talk(naming, sandbox, "metadata.test", 80, head("metadata.test")) == "gaierror"
    run(naming, sandbox, "sh", "-c", f"echo {outside.other} pkg.test >>/etc/hosts")
    assert talk(naming, sandbox, "pkg.test", 80, head("pkg.test")) == "heard"
    reached = {(address, data) for address, _, data in outside.world.heard}
    assert {address for address, data in reached if data.startswith(b"GET")} == {outside.one}
    assert {address for address, data in reached if data == b"SELECT 1"} == {outside.other}

    rows = decisions(naming, sandbox, verdict="deny")
    told = {(row["via"], row["name"], row["port"], row["reason"]) for row in rows}
    assert ("resolver", "secret.evil.test", None, "not_allowed") in told
    assert ("proxy", "evil.test", 80, "not_allowed") in told
    assert ("kernel", None, 22, "not_allowed") in told
    naming.http.delete(f"/v1/sandboxes/{sandbox}", params={"grace_seconds": 0})
    naming.ended(sandbox)
    assert len(decisions(naming, sandbox, verdict="deny")) == len(rows)


def test_an_update_to_names_counts_at_once(naming: Platform, outside: Outside) -> None:
    sandbox = naming.create(egress={"mode": "blocked"})["id"]
    assert talk(naming, sandbox, "pkg.test", 80, head("pkg.test")) == "gaierror"
    for allow, outcome in ((["pkg.test"], "heard"), (["a.cdn.test"], "gaierror"), (["*.test"], "heard")):
        policy = {"mode": "allowlist", "allow": allow}
        assert naming.http.put(f"/v1/sandboxes/{sandbox}/egress", json=policy).status_code == 200
        assert talk(naming, sandbox, "pkg.test", 80, head("pkg.test")) == outcome
    assert {address for address, _, _ in outside.world.heard} == {outside.one}


def test_programs_and_agent_are_killed_and_names_come_back(naming: Platform, outside: Outside) -> None:
    sandbox = naming.create(egress={"mode": "allowlist", "allow": ["pkg.test"]})["id"]
    assert talk(naming, sandbox, "pkg.test", 80, head("pkg.test")) == "heard"

    def is_back() -> bool:
        assert talk(naming, sandbox, "evil.test", 80, head("evil.test")) == "gaierror"
        return talk(naming, sandbox, "pkg.test", 80, head("pkg.test")) == "heard"

    for pid in [*programs(naming), naming.pid("node")]:
        os.kill(pid, signal.SIGKILL)
        naming.wait_ready()
        naming.wait_until(is_back, "names are back")
    assert {address for address, _, _ in outside.world.heard} == {outside.one}
    eventually(lambda: len(programs(naming)) == 2, "one of each program")


def programs(platform: Platform) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"netpolicy.birth" in command and str(platform.config.run_dir).encode() in b" ".join(command):
                found.append(int(entry.name))
    return sorted(found)
