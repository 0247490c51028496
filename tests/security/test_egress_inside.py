"""From inside a real sandbox: the policy that was asked for is the one that holds, from the first instruction on."""

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest

from egress_targets import Target, answered, probe_argv
from harness import Platform
from outside_kit import Outside

PORTS: Final = (80, 443, 5432)

TALKER: Final = """
import socket, sys, time
one = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
print("connected", flush=True)
for number in range(100000):
    one.sendall(b"x")
    if one.recv(1) != b"x":
        sys.exit("the far side is gone")
    print(number, flush=True)
    time.sleep(0.01)
"""
"""Talks for as long as it is answered, and ends with an error when it is not."""


@pytest.fixture
def outside(tmp_path: Path) -> Generator[Outside]:
    made = Outside(tmp_path)
    with made.serving(*PORTS):
        yield made


@pytest.fixture
def allowing(outside: Outside, start_platform: Callable[..., Platform]) -> Platform:
    return start_platform(egress_exceptions=outside.setting, pool_size="1", pool_max="1")


def reached(platform: Platform, sandbox: str, targets: list[Target]) -> list[Target]:
    argv = probe_argv(targets, patience_seconds=2)
    done = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": argv}).json()
    assert done["exit_code"] == 0, done
    return answered(done["stdout"])


def put(platform: Platform, sandbox: str, **policy: Any) -> dict[str, Any]:
    answer = platform.http.put(f"/v1/sandboxes/{sandbox}/egress", json=policy)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_is_allowed_is_reached_and_nothing_else(allowing: Platform, outside: Outside) -> None:
    sandbox = allowing.create(egress={"mode": "allowlist", "allow": [f"{outside.one}:5432", f"{outside.other}"]})["id"]
    inside = [Target(outside.one, 5432), Target(outside.other, 443), Target(outside.other, 80, "udp")]
    denied = [
        Target(outside.one, 80),
        Target(outside.one, 5432, "udp"),
        Target(outside.host, 80),
        Target("169.254.169.254", 80),
        Target("10.0.0.1", 80),
    ]
    assert reached(allowing, sandbox, [*inside, *denied]) == inside
    for target in (*inside, *denied):
        body = {"destination": f"{target.address}:{target.port}/{target.protocol}"}
        said = allowing.http.post(f"/v1/sandboxes/{sandbox}/egress/explain", json=body).json()
        assert said["verdict"] == ("allow" if target in inside else "deny"), said


def test_the_first_instruction_has_the_policy(allowing: Platform, outside: Outside) -> None:
    """Cold and from the ready pool alike: what an entrypoint does first is judged."""
    for egress, expected in (
        ({"mode": "allowlist", "allow": [outside.one]}, [outside.one]),
        ({"mode": "blocked"}, []),
        ({"mode": "open", "deny": [outside.one]}, [outside.other]),
    ):
        targets = [Target(outside.one, 80), Target(outside.other, 80)]
        made = allowing.create(egress=egress, entrypoint=probe_argv(targets, patience_seconds=2))
        allowing.ended(made["id"])
        lines = allowing.http.get(f"/v1/sandboxes/{made['id']}/logs").text.splitlines()
        found = answered("".join(row["text"] for row in map(json.loads, lines) if row["kind"] == "stdout"))
        assert [target.address for target in found] == expected


def test_an_update_cuts_what_it_forbids_before_it_answers(allowing: Platform, outside: Outside) -> None:
    sandbox = allowing.create(egress={"mode": "allowlist", "allow": [outside.one, outside.other]})["id"]
    talking: dict[str, str] = {}
    for address in (outside.one, outside.other):
        body = {"argv": ["python3", "-u", "-c", TALKER, address, "80"]}
        talking[address] = allowing.http.post(f"/v1/sandboxes/{sandbox}/processes", json=body).json()["id"]

    def output(address: str) -> str:
        path = f"/v1/sandboxes/{sandbox}/processes/{talking[address]}/result"
        return allowing.http.get(path, params={"wait_seconds": 0}).json()["stdout"]

    allowing.wait_until(lambda: all("5" in output(address) for address in talking), "both talk")
    changed = put(allowing, sandbox, mode="allowlist", allow=[f"{outside.one}:80"])
    assert changed["closed_connections"] == 1
    assert changed["applied_generation"] == changed["generation"] == 2
    heard = len(outside.world.heard)

    def ended() -> dict[str, Any]:
        path = f"/v1/sandboxes/{sandbox}/processes/{talking[outside.other]}"
        return allowing.http.get(path).json()

    allowing.wait_until(lambda: ended()["exit_code"] is not None, "the forbidden one has ended")
    assert ended()["exit_code"] != 0
    later = outside.world.heard[heard:]
    assert not [entry for entry in later if entry[0] == outside.other]
    before = output(outside.one)
    allowing.wait_until(lambda: output(outside.one) != before, "the permitted one goes on")
    shown = allowing.http.get(f"/v1/sandboxes/{sandbox}").json()["egress"]
    assert shown == {"mode": "allowlist", "generation": 2, "applied_generation": 2}


def test_a_restart_of_the_programs_keeps_policy_and_connections(allowing: Platform, outside: Outside) -> None:
    sandbox = allowing.create(egress={"mode": "open"})["id"]
    put(allowing, sandbox, mode="allowlist", allow=[outside.one])
    body = {"argv": ["python3", "-u", "-c", TALKER, outside.one, "80"]}
    process = allowing.http.post(f"/v1/sandboxes/{sandbox}/processes", json=body).json()["id"]
    path = f"/v1/sandboxes/{sandbox}/processes/{process}/result"

    def output() -> str:
        return allowing.http.get(path, params={"wait_seconds": 0}).json()["stdout"]

    allowing.wait_until(lambda: "5" in output(), "it talks")
    allowing.stop_programs()
    allowing.start()
    before = output()
    allowing.wait_until(lambda: output() != before, "it goes on")
    assert reached(allowing, sandbox, [Target(outside.one, 80), Target(outside.other, 80)]) == [Target(outside.one, 80)]
    shown = allowing.http.get(f"/v1/sandboxes/{sandbox}/egress").json()
    assert (shown["state"], shown["generation"]) == ("applied", 2)
    assert put(allowing, sandbox, mode="blocked")["closed_connections"] >= 1
