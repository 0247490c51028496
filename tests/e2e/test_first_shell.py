"""What a first shell of a real sandbox sees, and what its output looks like from outside."""

import json
from collections.abc import Generator
from datetime import datetime, timedelta
from typing import Any

import pytest

from harness import Platform
from harness import platform as start

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module", name="platform", params=["cold", "ready"])
def _platform(request: pytest.FixtureRequest) -> Generator[Platform]:
    """A platform whose next sandbox starts cold, or is claimed from a ready pool."""
    with start(pool_size="2", pool_max="2" if request.param == "ready" else "0") as started:
        if request.param == "ready":
            started.wait_until(lambda: _pool(started)["ready"], "one is ready")
        yield started
        assert _pool(started)["hits"] == (1 if request.param == "ready" else 0)


def _pool(platform: Platform) -> dict[str, Any]:
    with platform.node_http() as http:
        return http.get("/node/v1/report").json()["pool"]


@pytest.fixture(scope="module", name="base")
def _base(platform: Platform) -> Generator[str]:
    made = platform.create(env={"OWN": "sandbox", "BOTH": "sandbox"}, name="first-shell")
    yield f"/v1/sandboxes/{made['id']}"
    platform.http.delete(f"/v1/sandboxes/{made['id']}", params={"grace_seconds": 0})


def run(platform: Platform, base: str, **body: Any) -> dict[str, Any]:
    answer = platform.http.post(f"{base}/run", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_environment(platform: Platform, base: str) -> None:
    text = run(platform, base, argv=["env", "-0"], env={"BOTH": "process"})["stdout"]
    assert dict(line.split("=", 1) for line in text.split("\0") if line) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/home/user",
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "SANDLOT_SANDBOX_ID": base.rpartition("/")[2],
        "OWN": "sandbox",
        "BOTH": "process",
    }


def test_the_place(platform: Platform, base: str) -> None:
    done = run(platform, base, shell="pwd; umask; ulimit -n; ulimit -c; hostname; sudo id -u; tty")
    assert done["stdout"].split("\n")[:6] == ["/home/user", "0022", "65536", "0", "first-shell", "0"]
    assert run(platform, base, argv=["pwd"], cwd="..")["stdout"] == "/home\n"


@pytest.mark.parametrize(
    ("user", "ids"), [("root", "0:0"), ("user", "1000:1000"), ("0:1000", "0:1000"), ("4242:17", "4242:17"), ("7", "7")]
)
def test_users(platform: Platform, base: str, user: str, ids: str) -> None:
    seen = run(platform, base, shell='echo "$(id -u):$(id -g)"', user=user)["stdout"].strip()
    assert seen == ids or seen.split(":")[0] == ids


def test_each_line_has_its_own_time(platform: Platform, base: str) -> None:
    shell = "for i in 1 2 3; do echo $i; sleep 0.2; done"
    process = platform.http.post(f"{base}/processes", json={"shell": shell}).json()["id"]
    answer = platform.http.get(f"{base}/processes/{process}/output", params={"follow": "true"})
    rows = [json.loads(line) for line in answer.text.splitlines()]
    times = [datetime.fromisoformat(row["at"]) for row in rows if row["kind"] == "stdout"]
    assert len(times) == 3
    assert times[2] - times[0] >= timedelta(seconds=0.4)  # the program's own pauses, not ours


def test_a_refusal_of_the_node_has_a_hint_and_the_trace(platform: Platform, base: str) -> None:
    traceparent = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    refused = platform.http.post(f"{base}/run", json={"argv": ["true"], "cwd": "/none"}, headers=traceparent).json()
    assert (refused["code"], refused["trace_id"]) == ("cwd_not_found", TRACE)
    assert refused["hint"]
