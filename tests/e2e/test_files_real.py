"""Files on the real platform: large, odd, raced, cut short, and through the death of its programs."""

import base64
import hashlib
import http.client
import io
import json
import os
import signal
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import Platform, eventually

MIB = 1024 * 1024
LARGE_MIB = int(os.environ.get("SANDLOT_TEST_FILE_MIB", "256"))
ENTRIES = 200_000
PIECE = os.urandom(MIB)


def client(platform: Platform) -> httpx.Client:
    """Connections of one's own."""
    return httpx.Client(base_url=platform.url, headers={"Authorization": f"Bearer {platform.key}"}, timeout=300)


class Sandbox:
    """One sandbox by plain HTTP."""

    def __init__(self, platform: Platform, **fields: Any) -> None:
        self.platform = platform
        self.http = client(platform)
        self.id = platform.create(**fields)["id"]
        self.base = f"/v1/sandboxes/{self.id}"

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(method, self.base + path, timeout=120, **options)

    def put(self, path: str, content: Any = b"x", **params: Any) -> httpx.Response:
        return self.call("PUT", "/files", params={"path": path, **params}, content=content)

    def run(self, shell: str, **spec: Any) -> str:
        answer = self.call("POST", "/run", json={"shell": shell, **spec}).json()
        assert answer["exit_code"] == 0, answer
        return answer["stdout"]

    def close(self) -> None:
        self.http.delete(self.base, params={"grace_seconds": 0})
        self.http.close()


@pytest.fixture(scope="module")
def sandbox(platform: Platform) -> Generator[Sandbox]:
    made = Sandbox(platform, resources={"memory_mib": 1024, "disk_mib": 2048 + 3 * LARGE_MIB})
    yield made
    made.close()


def pieces(mib: int) -> Iterator[bytes]:
    for number in range(mib):
        yield number.to_bytes(8, "big") + PIECE[8:]


def hash_of(mib: int) -> str:
    digest = hashlib.sha256()
    for piece in pieces(mib):
        digest.update(piece)
    return digest.hexdigest()


def resident_mib(platform: Platform, program: str) -> float:
    status = Path(f"/proc/{platform.pid(program)}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


@pytest.mark.parametrize("known", [True, False], ids=["its length known", "chunked"])
def test_a_large_file_goes_in_and_comes_out_the_same(sandbox: Sandbox, *, known: bool) -> None:
    before = {program: resident_mib(sandbox.platform, program) for program in ("api", "node")}
    headers = {"Content-Length": str(LARGE_MIB * MIB)} if known else {}
    put = sandbox.call("PUT", "/files", params={"path": "/tmp/large"}, content=pieces(LARGE_MIB), headers=headers)
    assert put.status_code in {200, 201}, put.text
    expected = hash_of(LARGE_MIB)
    assert sandbox.run("sha256sum /tmp/large").split()[0] == expected
    digest = hashlib.sha256()
    with sandbox.http.stream("GET", sandbox.base + "/files", params={"path": "/tmp/large"}, timeout=60) as answer:
        assert answer.headers["Content-Length"] == str(LARGE_MIB * MIB)
        for piece in answer.iter_bytes():
            digest.update(piece)
    assert digest.hexdigest() == expected
    part = sandbox.call("GET", "/files", params={"path": "/tmp/large"}, headers={"Range": f"bytes=-{MIB}"})
    assert (part.status_code, part.content[8:]) == (206, PIECE[8:])
    assert sandbox.call("HEAD", "/files", params={"path": "/tmp/large"}).headers["ETag"] == part.headers["ETag"]
    for program, size in before.items():
        assert resident_mib(sandbox.platform, program) - size < 100


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_an_upload_cut_anywhere_changes_nothing(sandbox: Sandbox, share: float) -> None:
    sandbox.put("/tmp/cut/file", b"before")
    whole = 8

    def cut() -> Iterator[bytes]:
        for number, piece in enumerate(pieces(whole)):
            if number == int(whole * share):
                raise InterruptedError
            yield piece

    with pytest.raises(InterruptedError), client(sandbox.platform) as caller:
        caller.put(sandbox.base + "/files", params={"path": "/tmp/cut/file"}, content=cut())
    eventually(lambda: sandbox.run("ls -A /tmp/cut").split() == ["file"], "nothing is left of the upload")
    assert sandbox.call("GET", "/files", params={"path": "/tmp/cut/file"}).content == b"before"


def test_a_download_whose_reader_leaves_ends_inside_too(sandbox: Sandbox) -> None:
    sandbox.run("truncate -s 1G /tmp/hollow")
    for _ in range(5):
        with sandbox.http.stream("GET", sandbox.base + "/files", params={"path": "/tmp/hollow"}) as answer:
            next(answer.iter_raw())
    eventually(lambda: sandbox.run("ls -l /proc/1/fd 2>/dev/null | grep -c hollow || true") == "0\n", "none is open")


def test_writers_and_renamers_see_whole_files_only(sandbox: Sandbox) -> None:
    done = threading.Event()
    contents = [bytes([65 + number]) * 300_000 for number in range(4)]

    def write(content: bytes) -> None:
        with client(sandbox.platform) as http:
            while not done.is_set():
                answer = http.put(sandbox.base + "/files", params={"path": "/tmp/race/a"}, content=content)
                assert answer.status_code in {200, 201}, answer.text

    def rename() -> None:
        with client(sandbox.platform) as http:
            while not done.is_set():
                move = {"from": "/tmp/race/a", "to": "/tmp/race/b", "overwrite": True}
                assert http.post(sandbox.base + "/files/move", json=move).status_code in {200, 404}

    sandbox.put("/tmp/race/b", contents[0])
    with ThreadPoolExecutor() as pool:
        tasks = [*(pool.submit(write, content) for content in contents), pool.submit(rename)]
        try:
            for _ in range(60):
                seen = sandbox.call("GET", "/files", params={"path": "/tmp/race/b"})
                assert seen.content in contents
        finally:
            done.set()
        for task in tasks:
            task.result()
    assert set(sandbox.run("ls -A /tmp/race").split()) <= {"a", "b"}


def test_names_that_are_not_utf8(sandbox: Sandbox) -> None:
    sandbox.run("mkdir -p /tmp/odd; cd /tmp/odd; touch \"$(printf 'caf\\351')\"; ln -s \"$(printf 'caf\\351')\" link")
    found = sandbox.call("GET", "/directories", params={"path": "/tmp/odd"}).json()["items"]
    name = found[0]["path_base64"]
    assert base64.b64decode(name) == b"/tmp/odd/caf\xe9"
    assert base64.b64decode(found[1]["symlink_target_base64"]) == b"caf\xe9"
    assert sandbox.call("PUT", "/files", params={"path_base64": name}, content=b"odd").status_code == 200
    assert sandbox.call("GET", "/files", params={"path_base64": name}).content == b"odd"
    assert sandbox.call("GET", "/files", params={"path": "/tmp/odd/link"}).content == b"odd"
    archive = sandbox.call("GET", "/archive", params={"path": "/tmp/odd"}).content
    assert sandbox.call("PUT", "/archive", params={"path": "/tmp/odd2"}, content=archive).json()["files"] == 1
    assert sandbox.run("cat /tmp/odd2/link") == "odd"
    assert sandbox.call("DELETE", "/files", params={"path_base64": name}).status_code == 204


def test_a_directory_of_many_entries(sandbox: Sandbox) -> None:
    make = f"import os\nfor n in range({ENTRIES}): os.close(os.open(f'/tmp/many/f{{n:06}}', os.O_CREAT))"
    sandbox.run(f'mkdir /tmp/many; python3 -c "{make}"', timeout_seconds=200)
    before = {program: resident_mib(sandbox.platform, program) for program in ("api", "node")}
    seen = 0
    with sandbox.http.stream(
        "GET",
        sandbox.base + "/directories",
        params={"path": "/tmp/many"},
        headers={"Accept": "application/x-ndjson"},
        timeout=120,
    ) as answer:
        for line in answer.iter_lines():
            assert json.loads(line)["path"] == f"/tmp/many/f{seen:06}"
            seen += 1
    assert seen == ENTRIES
    params = {"path": "/tmp/many", "limit": "10000"}
    page = sandbox.call("GET", "/directories", params=params).json()
    again = sandbox.call("GET", "/directories", params=params | {"cursor": page["next_cursor"]}).json()
    assert [row["name"] for row in again["items"]] == [f"f{number:06}" for number in range(10_000, 20_000)]
    for program, size in before.items():
        assert resident_mib(sandbox.platform, program) - size < 100
    assert sandbox.call("DELETE", "/files", params={"path": "/tmp/many", "recursive": "true"}).status_code == 204


def test_a_full_disk_is_said_and_leaves_nothing(platform: Platform) -> None:
    small = Sandbox(platform, resources={"memory_mib": 256, "disk_mib": 64})
    try:
        refused = small.put("/tmp/too-large", pieces(200))
        assert (refused.status_code, refused.json()["code"], refused.json()["scope"]) == (507, "disk_full", "sandbox")
        assert small.put("/tmp/fits", next(pieces(1))).status_code == 201
        bomb = small.call(
            "PUT", "/files", params={"path": "/tmp/bomb"}, content=gzip_bomb(), headers={"Content-Encoding": "gzip"}
        )
        assert (bomb.status_code, bomb.json()["code"]) == (507, "disk_full")
        with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as archive:
            info = tarfile.TarInfo("large")
            info.size = 100 * MIB
            archive.addfile(info, io.BytesIO(b"".join(pieces(100))))
        refused = small.call("PUT", "/archive", params={"path": "/tmp/out"}, content=out.getvalue())
        assert (refused.status_code, refused.json()["code"]) == (507, "disk_full")
        small.call("DELETE", "/files", params={"path": "/tmp/out", "recursive": "true"})
        assert small.run("ls -A /tmp").split() == ["fits"]
        assert platform.http.get(f"/v1/sandboxes/{small.id}").json()["state"] == "running"
    finally:
        small.close()


def gzip_bomb() -> bytes:
    """Some 400 KB that unpack to 400 MB."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(400)), packer.flush()])


def test_a_watch_through_everything(sandbox: Sandbox) -> None:
    sandbox.run("mkdir -p /tmp/watched")
    with sandbox.http.stream("GET", sandbox.base + "/watch", params={"path": "/tmp/watched"}, timeout=60) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines)) == {"kind": "ready"}
        sandbox.put("/tmp/watched/deep/er/file")
        told = event = json.loads(next(lines))
        while event["path"] != "/tmp/watched/deep/er/file":
            event = json.loads(next(lines))
    assert (told["kind"], told["path"], told["is_directory"]) == ("create", "/tmp/watched/deep", True)
    assert (event["kind"], event["is_directory"]) == ("create", False)


def put_plainly(platform: Platform, path: str, data: bytes) -> int | None:
    """Upload over a connection of its own; None: it broke."""
    url = httpx.URL(platform.url)
    with closing(http.client.HTTPConnection(url.host, url.port, timeout=30)) as connection:
        try:
            connection.request("PUT", path, body=data, headers={"Authorization": f"Bearer {platform.key}"})
            with connection.getresponse() as answer:
                return answer.status
        except (OSError, http.client.HTTPException):
            return None


@pytest.mark.parametrize("victim", ["api", "node"])
def test_what_was_acknowledged_survives_the_death_of_a_program(
    start_platform: Callable[..., Platform], victim: str
) -> None:
    platform = start_platform()
    with closing(Sandbox(platform)) as sandbox:
        acknowledged_survives(platform, sandbox, victim)


def acknowledged_survives(platform: Platform, sandbox: Sandbox, victim: str) -> None:
    written: dict[str, bytes] = {}
    killed = threading.Event()

    def transfer(number: int) -> None:
        data = b"".join(pieces(6)) + bytes([number])
        path = f"/tmp/kept/{number}"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            status = put_plainly(platform, f"{sandbox.base}/files?path={path}", data)
            if status in {200, 201}:
                written[path] = data
                if killed.is_set():
                    return

    with ThreadPoolExecutor(10) as pool:
        tasks = [pool.submit(transfer, number) for number in range(10)]
        eventually(lambda: len(written) >= 3, "some uploads are acknowledged")
        os.kill(platform.pid(victim), signal.SIGKILL)
        killed.set()
        for task in tasks:
            task.result()
    assert len(written) == 10
    for path, data in written.items():
        assert sandbox.call("GET", "/files", params={"path": path}).content == data
    eventually(lambda: len(sandbox.run("ls -A /tmp/kept").split()) == 10, "no part of an upload is left")
