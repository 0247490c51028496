"""Direct access to a real node: the client takes it by itself, the bytes are the api's, and what breaks is resumed."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from harness import Platform
from sandlot import Client, RetryPolicy, Sandbox

_STEADY = RetryPolicy(attempts=1000, longest_seconds=0.5, deadline_seconds=120)


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    with Client(platform.url, platform.key, retries=_STEADY) as client:
        yield client


class _Watched(httpx.HTTPTransport):
    """Counts requests by where they went."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int | None, str]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.url.port, request.url.path))
        return super().handle_request(request)


def test_the_client_goes_to_the_node_by_itself(platform: Platform, tmp_path: Path) -> None:
    watched = _Watched()
    with httpx.Client(transport=watched) as http, Client(platform.url, platform.key, http=http) as client:
        assert client.me()["gateway"]["url"] == platform.gateway_url
        with Sandbox.create(client=client) as sandbox:
            watched.seen.clear()
            assert sandbox.run(["echo", "hi"]).stdout == "hi\n"
            sandbox.files.write("/tmp/f", b"x" * 1_000_000)
            assert sandbox.files.read("/tmp/f") == b"x" * 1_000_000
            process = sandbox.start(["cat"], tty=(24, 80))
            with process.attach() as terminal:
                terminal.write("hello\n\x04")
                assert b"hello" in b"".join(frame.data for frame in terminal)
            sandbox.files.download("/tmp", tmp_path / "tree")
            assert {port for port, _ in watched.seen} == {platform.config.gateway_port}
            watched.seen.clear()
            list(sandbox.logs())
            sandbox.metrics()
            assert {port for port, _ in watched.seen} != {platform.config.gateway_port}


def test_the_bytes_are_the_apis(platform: Platform) -> None:
    sandbox = platform.create()
    base = f"/v1/sandboxes/{sandbox['id']}"
    with httpx.Client(
        base_url=sandbox["access"]["url"], headers={"Authorization": f"Bearer {sandbox['access']['token']}"}
    ) as node:
        platform.http.put(f"{base}/files", params={"path": "/tmp/x"}, content=b"abc" * 1000).raise_for_status()
        platform.http.post(f"{base}/run", json={"argv": ["true"]}).raise_for_status()
        for path in ("/files?path=/tmp/x", "/directories?path=/tmp", "/processes", "/files?path=/no/such"):
            direct, through = node.get(base + path), platform.http.get(base + path)
            assert direct.status_code == through.status_code
            own = {"date", "sandlot-request-id", "server", "sandlot-error"}
            shown = [{k: v for k, v in one.headers.items() if k not in own} for one in (direct, through)]
            if direct.is_success:
                assert direct.content == through.content
                assert shown[0] == shown[1]
            else:
                left, right = direct.json(), through.json()
                assert left | {"request_id": ""} == right | {"request_id": ""}
    platform.http.delete(base)


def test_killing_gateway_and_node_under_streams_loses_nothing(platform: Platform, client: Client) -> None:
    """Ten attached terminals and a transfer over the direct path; both programs are killed in the middle."""
    count = 10
    program = "import sys\nfor n in range(400): print(n, flush=True); sys.stdin.readline()\n"
    with Sandbox.create(client=client) as sandbox:
        sandbox.files.write("/tmp/p.py", program)
        data = os.urandom(2_000_000)

        def talk(_: int) -> list[bytes]:
            process = sandbox.start(["python3", "/tmp/p.py"], stdin=True)
            with process.attach() as stream:
                said = b""
                for frame in stream:
                    said += frame.data
                    if frame.data:
                        stream.write("\n" * frame.data.count(b"\n"))
            return said.split()

        def transfer() -> bool:
            for n in range(10):
                sandbox.files.write(f"/tmp/big{n}", data)
                if sandbox.files.read(f"/tmp/big{n}") != data:
                    return False
            return True

        with ThreadPoolExecutor(count + 1) as pool:
            talks = [pool.submit(talk, n) for n in range(count)]
            transferred = pool.submit(transfer)
            for victim in ("gateway", "node", "gateway"):
                os.kill(platform.pid(victim), signal.SIGKILL)
                platform.wait_ready()
            expected = [str(n).encode() for n in range(400)]
            assert all(one.result(timeout=200) == expected for one in talks)
            assert transferred.result(timeout=200)
