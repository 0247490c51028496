"""What is kept and told of real sandboxes: ports, entrypoints, logs after every kind of end, meters."""

import base64
import json
import os
import signal
import threading
from datetime import datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest

from harness import Platform, eventually

EATER = "print('the last words', flush=True); import time; time.sleep(3); x = bytearray(1 << 30)"


def asked(platform: Platform, path: str, query: dict[str, str]) -> httpx.Response:
    """Ask, and again while the node is on its way back."""
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(platform.http.get(path, params=query))
        return answers[-1].status_code != 503

    platform.wait_until(answered, f"{path} answers")
    return answers[-1].raise_for_status()


def log_of(platform: Platform, sandbox_id: str, **query: str) -> list[dict[str, Any]]:
    answer = asked(platform, f"/v1/sandboxes/{sandbox_id}/logs", query)
    return [json.loads(line) for line in answer.text.splitlines()]


def written(rows: list[dict[str, Any]], kind: str = "stdout") -> bytes:
    parts = [
        row["text"].encode() if "text" in row else base64.b64decode(row["base64"])
        for row in rows
        if row["kind"] == kind
    ]
    return b"".join(parts)


def start(platform: Platform, sandbox_id: str, *argv: str) -> str:
    answer = platform.http.post(f"/v1/sandboxes/{sandbox_id}/processes", json={"argv": argv})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def run(platform: Platform, sandbox_id: str, shell: str) -> dict[str, Any]:
    return platform.http.post(f"/v1/sandboxes/{sandbox_id}/run", json={"shell": shell}).raise_for_status().json()


# --- ports


def test_a_port_is_waited_for_and_told_with_its_owner(platform: Platform) -> None:
    sandbox_id = platform.create()["id"]
    ports = f"/v1/sandboxes/{sandbox_id}/ports"
    assert platform.http.get(ports).json() == {"items": []}  # the guest's own does not show
    process_id = start(platform, sandbox_id, "sh", "-c", "sleep 0.5; exec python3 -m http.server 8123 --bind 127.0.0.1")
    [found] = platform.http.get(ports, params={"port": 8123, "wait_seconds": 30}).json()["items"]
    process = platform.http.get(f"/v1/sandboxes/{sandbox_id}/processes/{process_id}").json()
    assert found == {"port": 8123, "protocol": "tcp", "address": "127.0.0.1", "pid": process["pid"]}
    assert platform.http.get(ports, params={"port": 8124, "wait_seconds": 0.2}).json() == {"items": []}
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0")


# --- entrypoints


def test_the_exit_of_an_entrypoint_is_the_sandboxs_end(platform: Platform) -> None:
    sandbox = platform.create(entrypoint=["sh", "-c", "echo serving; sleep 0.3; exit 5"])
    assert sandbox["entrypoint_process_id"].startswith("prc")
    ended = platform.ended(sandbox["id"])
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("stopped", "entrypoint_exited", 5)
    rows = log_of(platform, sandbox["id"])
    assert written(rows) == b"serving\n"
    assert rows[-1] | {"cursor": "", "at": ""} == rows[-1] | {
        "cursor": "", "at": "", "kind": "exit", "exit_code": 5, "process_id": sandbox["entrypoint_process_id"]
    }  # fmt: skip


def test_an_entrypoint_that_is_not_there(platform: Platform) -> None:
    answer = platform.http.post("/v1/sandboxes", json={"entrypoint": ["/no/such/program"]})
    problem = answer.json()
    assert (problem["code"], problem["reason"], problem["exit_code"]) == ("start_failed", "start_failed", 127)
    record = platform.http.get(f"/v1/sandboxes/{problem['sandbox_id']}").json()
    assert (record["state"], record["reason"], record["exit_code"]) == ("failed", "start_failed", 127)


def test_an_entrypoint_is_watched_through_a_restart_of_the_node(platform: Platform) -> None:
    sandbox = platform.create(entrypoint=["sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 9"])
    os.kill(platform.pid("node"), signal.SIGKILL)
    platform.wait_ready()
    platform.wait_until(lambda: run(platform, sandbox["id"], "touch /tmp/go")["exit_code"] == 0)
    ended = platform.ended(sandbox["id"])
    assert (ended["reason"], ended["exit_code"]) == ("entrypoint_exited", 9)


# --- logs


def test_what_was_printed_before_memory_ran_out_is_in_the_log(platform: Platform) -> None:
    sandbox_id = platform.create(resources={"memory_mib": 128})["id"]
    process_id = start(platform, sandbox_id, "python3", "-c", EATER)
    ended = platform.ended(sandbox_id)
    assert ended["reason"] == "out_of_memory"
    rows = log_of(platform, sandbox_id, process_id=process_id)
    assert written(rows) == b"the last words\n"
    assert [row["kind"] for row in rows[-2:]] == ["lost", "exit"]
    assert (rows[-1]["reason"], rows[-1]["exit_code"]) == ("sandbox_stopped", 137)
    assert platform.http.get(f"/v1/sandboxes/{sandbox_id}/processes/{process_id}/output").status_code == 410


def test_what_is_printed_while_it_is_being_stopped_is_in_the_log(platform: Platform) -> None:
    sandbox_id = platform.create()["id"]
    run(platform, sandbox_id, "printf '\\377\\000ok'; echo late >&2")
    start(platform, sandbox_id, "bash", "-c", "trap 'echo bye; exit 0' TERM; echo hi; while :; do sleep 0.05; done")
    eventually(lambda: b"hi" in written(log_of(platform, sandbox_id)), "the process printed")
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}")
    rows = log_of(platform, sandbox_id)
    assert written(rows) == b"\xff\x00okhi\nbye\n"
    assert written(rows, "stderr").startswith(b"late\n")
    assert [row["exit_code"] for row in rows if row["kind"] == "exit"] == [0, 137]
    assert all(row["kind"] != "lost" for row in rows)


def test_a_log_is_followed_across_the_end(platform: Platform) -> None:
    sandbox_id = platform.create()["id"]
    rows: list[dict[str, Any]] = []

    def follow() -> None:
        with platform.http.stream("GET", f"/v1/sandboxes/{sandbox_id}/logs", params={"follow": "true"}) as answer:
            rows.extend(json.loads(line) for line in answer.iter_lines())

    reader = threading.Thread(target=follow)
    reader.start()
    start(platform, sandbox_id, "bash", "-c", "echo begun; sleep 1000")
    eventually(lambda: rows, "the first row")
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0")
    reader.join(timeout=30)
    assert not reader.is_alive()
    assert (written(rows), rows[-1]["kind"]) == (b"begun\n", "exit")


def test_a_killed_node_loses_and_repeats_nothing(platform: Platform) -> None:
    sandbox_id = platform.create()["id"]
    process_id = start(platform, sandbox_id, "bash", "-c", "for i in $(seq 1 400); do echo line $i; sleep 0.01; done")
    for _ in range(2):
        seen = len(written(log_of(platform, sandbox_id)))
        platform.wait_until(lambda seen=seen: len(written(log_of(platform, sandbox_id))) > seen)
        os.kill(platform.pid("node"), signal.SIGKILL)
        platform.wait_ready()
    platform.wait_until(lambda: any(row["kind"] == "exit" for row in log_of(platform, sandbox_id)))
    rows = log_of(platform, sandbox_id, process_id=process_id)
    assert written(rows).decode() == "".join(f"line {number}\n" for number in range(1, 401))
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0")


def test_a_firehose_is_held_to_its_rate_with_its_newest_words(platform: Platform) -> None:
    sandbox_id = platform.create()["id"]
    shell = "timeout 3 yes | head -c 400000000; echo; echo THE END; sleep 1000"
    start(platform, sandbox_id, "bash", "-c", shell)
    eventually(lambda: written(log_of(platform, sandbox_id)).endswith(b"THE END\n"), "the end is in the log")
    rows = log_of(platform, sandbox_id)
    assert sum(row["lost_bytes"] for row in rows if row["kind"] == "lost") > 10_000_000
    assert len(written(rows)) < 16 * 1024 * 1024
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0")


# --- metrics


def samples(platform: Platform, sandbox_id: str, **query: str) -> list[dict[str, Any]]:
    return asked(platform, f"/v1/sandboxes/{sandbox_id}/metrics", query).json()["items"]


def test_the_samples_of_a_busy_sandbox_are_the_kernels_count(platform: Platform) -> None:
    sandbox_id = platform.create(resources={"cpus": 1, "memory_mib": 512})["id"]
    start(platform, sandbox_id, "bash", "-c", "while :; do :; done")
    run(
        platform,
        sandbox_id,
        "dd if=/dev/urandom of=/root-or-tmp bs=1M count=1 2>/dev/null; head -c 20000000 /dev/urandom >/tmp/file",
    )
    platform.wait_until(lambda: len(samples(platform, sandbox_id)) >= 3, "three samples")
    found = samples(platform, sandbox_id)
    counted = platform._sandbox_cpu_seconds(sandbox_id)
    last = found[-1]
    assert 0 < last["cpu_used_seconds"] <= counted
    assert counted - last["cpu_used_seconds"] < 2.0
    assert [row["cpu_used_seconds"] for row in found] == sorted(row["cpu_used_seconds"] for row in found)
    for before, row in pairwise(found):
        seconds = (datetime.fromisoformat(row["at"]) - datetime.fromisoformat(before["at"])).total_seconds()
        share = (row["cpu_used_seconds"] - before["cpu_used_seconds"]) / seconds
        assert row["cpu_used_percent"] == pytest.approx(100 * share, rel=0.01, abs=0.1)
        assert 1 < row["cpu_used_percent"] < 150
    assert last["cpus"] == 1
    assert 0 < last["memory_used_bytes"] <= last["memory_limit_bytes"]
    assert last["memory_limit_bytes"] >= 512 * 1024 * 1024
    assert last["disk_used_bytes"] >= 20_000_000
    assert last["disk_limit_bytes"] == 8192 * 1024 * 1024
    assert last["processes"] >= 1
    assert last["ingress_bytes"] > 0
    assert last["egress_bytes"] > 0
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0")
    kept = samples(platform, sandbox_id)
    assert len(kept) >= len(found)
    assert kept[-1]["cpu_used_seconds"] >= last["cpu_used_seconds"]


def test_samples_outlive_a_restart_of_the_node(platform: Platform) -> None:
    sandbox_id = platform.create()["id"]
    run(platform, sandbox_id, "true")
    platform.wait_until(lambda: len(samples(platform, sandbox_id)) >= 1)
    first = samples(platform, sandbox_id)[0]
    os.kill(platform.pid("node"), signal.SIGTERM)
    platform.wait_ready()
    platform.wait_until(lambda: first["at"] in [row["at"] for row in samples(platform, sandbox_id)])
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0")


@pytest.mark.parametrize("name", ["logs", "metrics"])
def test_what_is_kept_is_for_root_alone(platform: Platform, name: str) -> None:
    place = platform.config.data_dir / "history" / {"logs": "logs", "metrics": "metrics.db"}[name]
    eventually(place.exists, f"{name} are kept")
    assert place.stat().st_mode & 0o077 == 0
