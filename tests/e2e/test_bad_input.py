"""Whatever comes in, by request or from inside a sandbox, gets a clear answer; the others and the node go on."""

import asyncio
import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from harness import Platform

MANY_FILES = """
import os
os.mkdir("d")
for number in range(50000):
    open(f"d/{number}", "w").close()
print(len(os.listdir("d")))
"""


@pytest.fixture
def sandbox(platform: Platform) -> Any:
    created = platform.create(resources={"memory_mib": 512, "max_processes": 64})
    yield created["id"]
    platform.http.delete(f"/v1/sandboxes/{created['id']}", params={"grace_seconds": 0})


def run(platform: Platform, sandbox: str, **spec: Any) -> dict[str, Any]:
    answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json=spec)
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


class TestRequests:
    def test_unknown_image_names_what_to_do(self, platform: Platform) -> None:
        body = problem(platform.http.post("/v1/sandboxes", json={"image": "no-such"}), 404, "image_not_found")
        assert body["hint"]

    @pytest.mark.parametrize(
        "resources",
        [{"memory_mib": 16_000_000}, {"cpus": 1000}, {"disk_mib": 1_000_000_000}],
    )
    def test_impossible_resources(self, platform: Platform, resources: dict[str, int]) -> None:
        answer = platform.http.post("/v1/sandboxes", json={"resources": resources})
        problem(answer, 422, "impossible_resources")

    def test_misspelt_field_is_refused_by_path(self, platform: Platform) -> None:
        body = problem(platform.http.post("/v1/sandboxes", json={"egres": {"mode": "open"}}), 422, "invalid_request")
        assert body["errors"][0]["path"] == "/egres"

    def test_nul_in_argv(self, platform: Platform, sandbox: str) -> None:
        answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["echo", "a\0b"]})
        problem(answer, 422, "invalid_request")

    def test_body_that_is_not_utf8(self, platform: Platform, sandbox: str) -> None:
        answer = platform.http.post(
            f"/v1/sandboxes/{sandbox}/run",
            content=b'{"argv": ["\xff"]}',
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code in {400, 422}
        assert answer.json()["code"] in {"malformed_request", "invalid_request"}

    def test_argv_of_one_megabyte(self, platform: Platform, sandbox: str) -> None:
        answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["echo", "x" * 1_000_000]})
        assert problem(answer, 422, "argument_too_long")["limit_bytes"] == 131_071

    def test_argv_of_one_megabyte_in_many(self, platform: Platform, sandbox: str) -> None:
        words = ["word"] * 200_000
        done = run(platform, sandbox, argv=["sh", "-c", "echo $#", *words])
        assert (done["exit_code"], done["stdout"]) == (0, "199999\n")

    def test_missing_command_is_127(self, platform: Platform, sandbox: str) -> None:
        done = run(platform, sandbox, argv=["no-such-command"])
        assert (done["exit_code"], done["reason"], done["start_error"]["code"]) == (
            127,
            "not_started",
            "command_not_found",
        )

    def test_forbidden_command_is_126(self, platform: Platform, sandbox: str) -> None:
        done = run(platform, sandbox, argv=["/etc/passwd"])
        assert (done["exit_code"], done["reason"], done["start_error"]["code"]) == (
            126,
            "not_started",
            "permission_denied",
        )

    def test_unknown_user(self, platform: Platform, sandbox: str) -> None:
        answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["id"], "user": "nobody-here"})
        problem(answer, 422, "user_not_found")

    def test_unknown_cwd(self, platform: Platform, sandbox: str) -> None:
        answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["id"], "cwd": "/no/such"})
        problem(answer, 422, "cwd_not_found")

    def test_unknown_user_at_create_leaves_nothing(self, platform: Platform) -> None:
        body = problem(platform.http.post("/v1/sandboxes", json={"user": "nobody-here"}), 422, "user_not_found")
        kept = platform.http.get(f"/v1/sandboxes/{body['sandbox_id']}").json()
        assert kept["state"] == "failed"


class TestStreams:
    def test_fifty_megabytes_of_stdin(self, platform: Platform, sandbox: str) -> None:
        data = bytes(range(256)) * (50 * 1024 * 4)
        process = platform.http.post(
            f"/v1/sandboxes/{sandbox}/processes",
            json={"argv": ["sha256sum"], "stdin": True},
        ).json()
        path = f"/v1/sandboxes/{sandbox}/processes/{process['id']}"
        written = platform.http.post(f"{path}/stdin", content=data, params={"close": "true", "offset": 0}, timeout=120)
        assert written.json() == {"offset": len(data), "closed": True}
        done = platform.http.get(f"{path}/result", params={"wait_seconds": 60}).json()
        assert done["stdout"].split()[0] == hashlib.sha256(data).hexdigest()

    def test_output_without_newlines_and_binary(self, platform: Platform, sandbox: str) -> None:
        done = run(platform, sandbox, shell="head -c 300000 /dev/zero | tr '\\0' x; printf '\\377\\376' >&2")
        assert done["stdout"] == "x" * 300_000
        assert done["lossy"]
        assert done["stderr_bytes"] == 2

    def test_a_gibibyte_with_no_reader(self, platform: Platform, sandbox: str) -> None:
        done = run(platform, sandbox, shell="head -c 1073741824 /dev/zero", timeout_seconds=120, max_output_bytes=0)
        assert (done["exit_code"], done["stdout_bytes"]) == (0, 1 << 30)
        process = done["process_id"]
        frames = platform.http.get(f"/v1/sandboxes/{sandbox}/processes/{process}/output").text.splitlines()
        assert '"kind":"lost"' in frames[0].replace(" ", "")
        assert '"kind":"exit"' in frames[-1].replace(" ", "")

    def test_a_client_that_vanishes_ends_nothing(self, platform: Platform, sandbox: str) -> None:
        process = platform.http.post(
            f"/v1/sandboxes/{sandbox}/processes",
            json={"shell": "for i in 1 2 3; do echo $i; read -t 0.2 x < /dev/zero; done; sleep 1; echo end"},
        ).json()
        path = f"/v1/sandboxes/{sandbox}/processes/{process['id']}"
        with platform.http.stream("GET", f"{path}/output", params={"follow": "true"}) as stream:
            next(stream.iter_raw())
        done = platform.http.get(f"{path}/result", params={"wait_seconds": 30}).json()
        assert done["exit_code"] == 0
        assert done["stdout"].endswith("end\n")


class TestInside:
    def test_fork_bomb_is_held_and_the_sandbox_goes_on(self, platform: Platform, sandbox: str) -> None:
        done = run(platform, sandbox, argv=["bash", "-c", "b() { b | b & }; b; sleep 2; exit 7"], timeout_seconds=10)
        assert done["reason"] in {"exited", "timed_out", "signaled", "killed"}
        platform.wait_until(lambda: run(platform, sandbox, argv=["true"])["exit_code"] == 0)

    def test_out_of_memory_ends_this_sandbox_with_its_reason(self, platform: Platform) -> None:
        sandbox = platform.create(resources={"memory_mib": 128})["id"]
        other = platform.create()["id"]
        # The answer may be a RunResult that says the sandbox stopped, or a broken connection.
        with contextlib.suppress(httpx.TransportError):
            platform.http.post(
                f"/v1/sandboxes/{sandbox}/run",
                json={"argv": ["python3", "-c", "x = bytearray(1 << 30); print(len(x))"]},
            )
        ended = platform.ended(sandbox)
        assert (ended["state"], ended["reason"]) == ("failed", "out_of_memory")
        assert run(platform, other, argv=["true"])["exit_code"] == 0
        refused = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["true"]})
        assert problem(refused, 410, "sandbox_ended")["reason"] == "out_of_memory"
        platform.http.delete(f"/v1/sandboxes/{other}")

    def test_disk_full_is_told_inside_and_given_back(self, platform: Platform) -> None:
        sandbox = platform.create(resources={"disk_mib": 64})["id"]
        done = run(
            platform, sandbox, shell="head -c 200M /dev/zero > f; echo $?; rm f; head -c 30M /dev/zero > g; echo $?"
        )
        assert done["stdout"].split() == ["1", "0"]
        assert "No space left" in done["stderr"]
        platform.http.delete(f"/v1/sandboxes/{sandbox}")

    def test_kill_of_pid_1_is_the_guests_failure(self, platform: Platform) -> None:
        sandbox = platform.create()["id"]
        with contextlib.suppress(httpx.TransportError):
            platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": ["kill", "-9", "1"], "user": "root"})
        ended = platform.ended(sandbox)
        assert (ended["state"], ended["reason"]) == ("failed", "guest_failed")

    def test_a_process_that_ignores_sigterm(self, platform: Platform, sandbox: str) -> None:
        done = run(
            platform,
            sandbox,
            argv=["bash", "-c", "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.1; done"],
            timeout_seconds=0.5,
            kill_grace_seconds=0.2,
        )
        assert (done["exit_code"], done["reason"]) == (124, "timed_out")
        left = run(platform, sandbox, argv=["pgrep", "-c", "sleep"])
        assert left["stdout"].strip() == "0"

    def test_ten_thousand_short_processes(self, platform: Platform, sandbox: str) -> None:
        done = run(
            platform,
            sandbox,
            argv=["bash", "-c", "for i in $(seq 10000); do /bin/true; done; echo done"],
            timeout_seconds=240,
        )
        assert done["stdout"] == "done\n"

    def test_fifty_thousand_files(self, platform: Platform, sandbox: str) -> None:
        done = run(
            platform,
            sandbox,
            argv=["python3", "-c", MANY_FILES],
            timeout_seconds=120,
        )
        assert done["stdout"] == "50000\n"


class TestManyAtOnce:
    def test_two_deletes_at_once(self, platform: Platform) -> None:
        sandbox = platform.create()["id"]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(platform.http.delete, [f"/v1/sandboxes/{sandbox}"] * 2))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert {answer.json()["state"] for answer in answers} <= {"stopped", "stopping"}
        assert platform.ended(sandbox)["reason"] == "requested"

    async def test_a_hundred_creates_at_once(self, platform: Platform) -> None:
        async with platform.async_http() as http, asyncio.TaskGroup() as group:
            creates = [
                group.create_task(
                    http.post("/v1/sandboxes", json={"resources": {"memory_mib": 64}, "wait_seconds": 120})
                )
                for _ in range(100)
            ]
        created = [create.result() for create in creates]
        assert {answer.status_code for answer in created} == {201}, {answer.text for answer in created}
        ids = [answer.json()["id"] for answer in created]
        async with platform.async_http() as http, asyncio.TaskGroup() as group:
            runs = [
                group.create_task(http.post(f"/v1/sandboxes/{each}/run", json={"argv": ["echo", each]})) for each in ids
            ]
        assert [done.result().json()["stdout"] for done in runs] == [f"{each}\n" for each in ids]
        async with platform.async_http() as http, asyncio.TaskGroup() as group:
            deletes = [
                group.create_task(http.delete(f"/v1/sandboxes/{each}", params={"grace_seconds": 0})) for each in ids
            ]
        assert {deleted.result().status_code for deleted in deletes} == {200}
