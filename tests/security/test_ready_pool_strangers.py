"""A ready sandbox is nobody's: no call can name it, and what opened it before its claim opens nothing after."""

import asyncio
import hashlib
from collections.abc import Generator
from typing import Any

import pytest

from harness import Platform, platform
from infra.setup.places import cache_dir, guest_path
from live_stand import init_of, open_socket
from sandboxd.guest_client.base import GuestError
from sandboxd.guest_client.http import HttpGuest

OLD, NEW = "5a" * 32, "a5" * 32


@pytest.fixture(scope="module", name="pooled")
def _pooled() -> Generator[Platform]:
    with platform(pool_size="2", pool_max="2") as started:
        yield started


def _handles(pooled: Platform) -> set[str]:
    with pooled.node_http() as http:
        report: dict[str, Any] = http.get("/node/v1/report").json()
    assert report["sandboxes"] == []
    return pooled.node_sandboxes() if sum(each["ready"] for each in report["pool"]["ready"]) == 2 else set()


def test_no_call_of_either_side_names_a_ready_one(pooled: Platform) -> None:
    pooled.wait_until(lambda: len(_handles(pooled)) == 2, "two are ready")
    handles = _handles(pooled)
    for handle in handles:
        base = f"/v1/sandboxes/{handle}"
        tries: list[tuple[str, str, Any]] = [
            ("GET", base, None), ("DELETE", base, None), ("PATCH", base, {"metadata": {}}),
            ("POST", f"{base}/run", {"argv": ["true"]}), ("POST", f"{base}/processes", {"argv": ["true"]}),
            ("GET", f"{base}/processes", None), ("POST", f"{base}/extend", {"timeout_seconds": 60}),
        ]  # fmt: skip
        for method, path, body in tries:
            answer = pooled.http.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (404, "sandbox_not_found"), (method, path)
        with pooled.node_http() as http:
            spec = pooled_spec(http.get("/node/v1/report").json())
            for method, path, body in [
                ("GET", f"/node{base}", None),
                ("DELETE", f"/node{base}", None),
                ("PUT", f"/node{base}", {"generation": 1, "epoch": 99, "deadline_seconds": 10, "spec": spec}),
                ("POST", f"{base}/run", {"argv": ["true"]}),
                ("POST", f"{base}/processes", {"argv": ["true"]}),
            ]:
                assert http.request(method, path, json=body).status_code == 404, (method, path)
    assert pooled.http.get("/v1/sandboxes").json()["items"] == []
    assert _handles(pooled) == handles


def pooled_spec(report: dict[str, Any]) -> dict[str, Any]:
    image = report["images"][0]
    return {"image": {"id": image["id"], "reference": "base", "digest": image["digest"]}}


async def test_the_token_of_before_the_claim_is_dead_after_it() -> None:
    arguments = ["--native", "--listen", "127.0.0.1:0", "--peer", "127.0.0.1"]
    hashed = hashlib.sha256(OLD.encode()).hexdigest()
    program = await asyncio.create_subprocess_exec(
        str(guest_path(cache_dir())), *arguments, "--token-sha256", hashed, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert program.stdout is not None
        host, port = (await program.stdout.readline()).decode().strip().rsplit(":", 1)
        guest = HttpGuest(host, OLD, open_socket=open_socket, port=int(port))
        thief = HttpGuest(host, OLD, open_socket=open_socket, port=int(port))
        await thief.health()
        await guest.init(init_of(user="root", cwd="/", token=NEW))
        assert (await guest.health()).initialized
        with pytest.raises(GuestError, match="unauthenticated"):
            await thief.health()
        with pytest.raises(GuestError, match="unauthenticated"):
            await thief.init(init_of(user="root", cwd="/", token=OLD))
        await guest.close()
        await thief.close()
    finally:
        program.kill()
        await program.wait()
