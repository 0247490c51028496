"""`kill -9` of each program, at each moment that matters: nothing acknowledged is lost, nothing is left behind."""

import contextlib
import json
import os
import signal
import threading
from typing import Any

import httpx
import pytest

from harness import Platform

COUNTER = "for i in $(seq 1 200); do echo line $i; sleep 0.02; done"
LINES = "".join(f"line {number}\n" for number in range(1, 201))


def follow(platform: Platform, path: str) -> tuple[str, dict[str, Any]]:
    """Read a process's output to its end, resuming after every break."""
    after, text = 0, ""
    while True:
        try:
            with platform.http.stream("GET", f"{path}/output", params={"follow": "true", "after": after}) as stream:
                if stream.status_code != 200:
                    continue
                for line in stream.iter_lines():
                    frame = json.loads(line)
                    after = frame.get("next", after)
                    if frame["kind"] == "stdout":
                        text += frame["text"]
                    assert frame["kind"] != "lost", frame
                    if frame["kind"] == "exit":
                        return text, frame
        except httpx.TransportError:
            platform.wait_ready()


@pytest.mark.parametrize("program", ["api", "node"])
def test_killed_during_a_stream_nothing_is_lost(platform: Platform, program: str) -> None:
    sandbox = platform.create()["id"]
    process = platform.http.post(f"/v1/sandboxes/{sandbox}/processes", json={"argv": ["bash", "-c", COUNTER]}).json()
    path = f"/v1/sandboxes/{sandbox}/processes/{process['id']}"
    result: list[tuple[str, dict[str, Any]]] = []
    reader = threading.Thread(target=lambda: result.append(follow(platform, path)))
    reader.start()
    for _ in range(2):
        platform.wait_until(lambda: platform.http.get(f"{path}").status_code == 200)
        os.kill(platform.pid(program), signal.SIGKILL)
        platform.wait_ready()
    reader.join(timeout=60)
    assert not reader.is_alive()
    text, end = result[0]
    assert text == LINES
    assert end["exit_code"] == 0
    again = platform.http.get(f"{path}/result").json()
    assert (again["stdout"], again["exit_code"]) == (LINES, 0)
    platform.http.delete(f"/v1/sandboxes/{sandbox}")


@pytest.mark.parametrize("program", ["api", "node"])
def test_killed_during_creates_every_promise_ends_somewhere(platform: Platform, program: str) -> None:
    promised: list[str] = []

    def create() -> None:
        try:
            answer = platform.http.post("/v1/sandboxes", json={"resources": {"memory_mib": 64}})
        except httpx.TransportError:
            return
        if answer.status_code == 201:
            promised.append(answer.json()["id"])

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    platform.wait_until(lambda: platform.http.get("/v1/sandboxes").json()["items"] != [])
    os.kill(platform.pid(program), signal.SIGKILL)
    for thread in threads:
        thread.join()
    platform.wait_ready()
    for each in promised:
        state = platform.settled(each)["state"]
        assert state in {"running", "failed"}
        if state == "running":
            assert platform.http.post(f"/v1/sandboxes/{each}/run", json={"argv": ["true"]}).json()["exit_code"] == 0
    for each in platform.http.get("/v1/sandboxes").json()["items"]:
        platform.http.delete(f"/v1/sandboxes/{each['id']}", params={"grace_seconds": 0})
    platform.wait_until(lambda: platform.http.get("/v1/sandboxes").json()["items"] == [])
    platform.wait_until(lambda: platform.node_sandboxes() == set())


@pytest.mark.parametrize("program", ["api", "node"])
def test_killed_during_a_stop_it_still_stops(platform: Platform, program: str) -> None:
    sandbox = platform.create()["id"]
    platform.http.post(
        f"/v1/sandboxes/{sandbox}/processes",
        json={"argv": ["bash", "-c", "trap '' TERM; while :; do sleep 0.1; done"]},
    )

    def delete() -> None:
        with contextlib.suppress(httpx.TransportError):
            platform.http.delete(f"/v1/sandboxes/{sandbox}", params={"grace_seconds": 2})

    thread = threading.Thread(target=delete)
    thread.start()
    platform.wait_until(lambda: platform.http.get(f"/v1/sandboxes/{sandbox}").json()["state"] == "stopping")
    os.kill(platform.pid(program), signal.SIGKILL)
    thread.join()
    platform.wait_ready()
    ended = platform.ended(sandbox)
    assert (ended["state"], ended["reason"]) == ("stopped", "requested")
    platform.wait_until(lambda: platform.node_sandboxes() == set())
