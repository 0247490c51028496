"""A real guest agent, alone on loopback or inside runsc, and a plain client that speaks its protocol over HTTP."""

import asyncio
import base64
import hashlib
import http.client
import json
import os
import random
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlencode

from sandboxd.cgroups import Cgroups
from sandboxd.contract.frames import OUTPUT_KINDS, Decoder, Frame, FrameKind
from sandboxd.contract.ids import new_id
from sandboxd.contract.messages import Resources
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.runtime.base import Launch
from sandboxd.runtime.runsc import RunscRuntime

SOURCES = Path(__file__).parent.parent / "sandboxd/guest"
CACHE = Path(os.environ.get("SANDLOT_CACHE_DIR", "/var/lib/sandlot/cache"))
MAX_PROCESSES = 200
WITHIN = 30.0

_T = TypeVar("_T")
Query = Mapping[str, str | int | float | None]


def process_id() -> str:
    return new_id("prc", os.urandom)


def eventually(check: Callable[[], _T], within: float = WITHIN) -> _T:
    """Return the first true answer."""
    deadline = time.monotonic() + within
    while True:
        if answer := check():
            return answer
        assert time.monotonic() < deadline, "it did not become true in time"
        threading.Event().wait(0.01)


@dataclass
class Reply:
    """A whole answer."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def frames(self) -> list[Frame]:
        decoder = Decoder()
        frames = list(decoder.feed(self.body))
        decoder.finish()
        return frames

    def refused(self, status: int, code: str) -> dict[str, Any]:
        assert self.status == status, (self.status, self.body[:500])
        assert self.json["code"] == code
        return self.json


@dataclass
class Ran:
    """A process from its start to its end, as a follower saw it."""

    status: int
    frames: list[Frame]

    @property
    def attached(self) -> dict[str, Any]:
        assert self.frames[0].kind == FrameKind.ATTACHED
        return self.frames[0].json()

    @property
    def exit(self) -> dict[str, Any]:
        assert [frame.kind for frame in self.frames].count(FrameKind.EXIT) == 1
        assert self.frames[-1].kind == FrameKind.EXIT
        return self.frames[-1].json()

    def channel(self, kind: FrameKind) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.kind == kind)

    @property
    def stdout(self) -> bytes:
        return self.channel(FrameKind.STDOUT)

    @property
    def stderr(self) -> bytes:
        return self.channel(FrameKind.STDERR)

    @property
    def terminal(self) -> bytes:
        return self.channel(FrameKind.TERMINAL)


class Stream:
    """An answer still being read."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._answer = connection.getresponse()
        self._decoder = Decoder()
        self.status = self._answer.status
        self.frames: list[Frame] = []

    def until(self, check: Callable[[list[Frame]], bool]) -> list[Frame]:
        """Read on until the frames so far pass; fails at the end of the stream."""
        while not check(self.frames):
            data = self._answer.read1(65536)
            assert data, f"the stream ended: {self.frames[-3:]}"
            self.frames.extend(self._decoder.feed(data))
        return self.frames

    def rest(self) -> list[Frame]:
        self.frames.extend(self._decoder.feed(self._answer.read()))
        self._decoder.finish()
        return self.frames

    def text(self, kind: FrameKind = FrameKind.STDOUT) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.kind == kind)

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


@dataclass
class RawGuest:
    """The protocol, call by call. Not for several threads at once."""

    host: str
    port: int
    token: str
    inside: bool
    """Whether it is PID 1 of a sandbox."""
    _kept: list[http.client.HTTPConnection | Stream] = field(
        default_factory=list["http.client.HTTPConnection | Stream"]
    )

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        self._kept.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._kept:
            connection.close()

    def send(  # the parts of an HTTP request
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPConnection:
        connection = self.connect()
        text = urlencode({name: value for name, value in (query or {}).items() if value is not None}, quote_via=quote)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        connection.request(method, f"/v1/{path}" + (f"?{text}" if text else ""), body=data, headers=given)
        return connection

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Reply:
        connection = self.send(method, path, body, **more)
        answer = connection.getresponse()
        reply = Reply(answer.status, answer.read())
        connection.close()
        self._kept.remove(connection)
        return reply

    def init(self, **changes: Any) -> Reply:
        values: dict[str, Any] = {
            "hostname": "sbxaaaaaaaaaaaaaaaaaaaa",
            "env": {},
            "image_env": {},
            "user": None,
            "cwd": None,
            "image_user": None,
            "image_cwd": None,
            "address": self.host,
            "gateway": "10.0.0.0",
            "resolvers": ["192.0.2.1"],
            "max_processes": MAX_PROCESSES,
            "memory_bytes": 256 << 20,
            "now_us": time.time_ns() // 1000,
            "seed_base64": base64.b64encode(secrets.token_bytes(32)).decode(),
            "backstop_seconds": None,
        }
        return self.call("POST", "init", values | changes)

    def spec(self, command: str | list[str], **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "id": process_id(),
            "env": {},
            "stdin": False,
            "merge_stderr": False,
            "kill_grace_seconds": 1,
            "output": {"mode": "ring", "ring_bytes": 4 << 20, "limit_bytes": None},
        }
        return values | {"shell" if isinstance(command, str) else "argv": command} | changes

    def start(self, command: str | list[str], **changes: Any) -> dict[str, Any]:
        reply = self.call("POST", "processes", self.spec(command, **changes))
        assert reply.status == http.HTTPStatus.CREATED, reply
        return reply.json

    def run(self, command: str | list[str], **changes: Any) -> Ran:
        reply = self.call("POST", "processes", self.spec(command, **changes), query={"follow": 1})
        assert reply.status == http.HTTPStatus.CREATED, reply
        return Ran(reply.status, reply.frames)

    def output(self, process: str, **query: Any) -> list[Frame]:
        reply = self.call("GET", f"processes/{process}/output", query=query)
        assert reply.status == http.HTTPStatus.OK, reply
        return reply.frames

    def follow(self, process: str, **query: Any) -> Stream:
        stream = Stream(self.send("GET", f"processes/{process}/output", query={"follow": 1, **query}))
        self._kept.append(stream)
        return stream

    def show(self, process: str, wait_seconds: float = 0) -> dict[str, Any]:
        return self.call("GET", f"processes/{process}", query={"wait_seconds": wait_seconds}).json

    def ended(self, process: str) -> dict[str, Any]:
        view = self.show(process, WITHIN)
        assert view["state"] == "ended", view
        return view

    def signal(self, process: str, signal: str, scope: str = "tree", key: str | None = None) -> Reply:
        headers = {"Idempotency-Key": key} if key else {}
        body = {"signal": signal, "scope": scope}
        return self.call("POST", f"processes/{process}/signal", body, headers=headers)

    def stdin(self, process: str, data: bytes, offset: int | None = None, *, close: bool = False) -> Reply:
        return self.call("POST", f"processes/{process}/stdin", data, query={"offset": offset, "close": int(close)})

    def put(self, path: str, data: bytes, **query: Any) -> Reply:
        return self.call("PUT", "files", data, query={"path": path, **query})

    def text(self, command: str | list[str], **changes: Any) -> str:
        """Run something that must succeed, for what it prints."""
        ran = self.run(command, **changes)
        assert ran.exit["exit_code"] == 0, (ran.exit, ran.stderr)
        return ran.stdout.decode()

    def alive(self, pid: int) -> bool:
        """Whether the process is there and no zombie."""
        check = f"case $(cut -d' ' -f3 /proc/{pid}/stat 2>/dev/null) in ''|Z|X) exit 1;; esac"
        return self.run(check).exit["exit_code"] == 0


def zstd_of(data: bytes, repeat: int = 0) -> bytes:
    """Return a zstd frame of the data, unpacked blocks and all; then a MiB of zeros so many times, in 32 bytes each."""
    blocks = [b"\x00" + data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    blocks += [b"\x02\x00"] * (repeat * 8)
    sizes = [len(block) - 1 if block[0] == 0 else 131_072 for block in blocks]
    parts = [b"\x28\xb5\x2f\xfd\x00\x38"]  # no content size, a window of 128 KiB
    for number, (block, size) in enumerate(zip(blocks, sizes, strict=True), 1):
        head = (size << 3) | block[0] | (number == len(blocks))
        parts.append(head.to_bytes(3, "little") + block[1:])
    return b"".join(parts)


def output_bytes(frames: list[Frame]) -> bytes:
    return b"".join(frame.payload for frame in frames if frame.kind in OUTPUT_KINDS)


def build(directory: Path) -> Path:
    """Build the guest into `directory`, as the set-up does."""
    binary = directory / "guest"
    command = ["go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=test", "-o", str(binary), "./cmd/guest"]
    subprocess.run(command, cwd=SOURCES, check=True, env={**os.environ, "CGO_ENABLED": "0"})
    return binary


@contextmanager
def native(directory: Path, *arguments: str) -> Generator[RawGuest]:
    """Run the guest on loopback, not yet initialized."""
    token = secrets.token_hex(32)
    command = [str(build(directory)), "--native", "--listen", "127.0.0.1:0", "--peer", "127.0.0.1"]
    command += ["--token-sha256", _hash(token), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        try:
            with closing(RawGuest("127.0.0.1", _port(agent.stdout), token, inside=False)) as guest:
                yield guest
        finally:
            agent.kill()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _port(stdout: IO[str] | None) -> int:
    assert stdout is not None
    line = stdout.readline()
    assert line, "the guest did not start"
    return int(line.rsplit(":", 1)[1])


class Node:
    """Just enough of a node for one sandbox at a time: a runtime, and a link the test itself stands at the end of."""

    def __init__(self) -> None:
        letters = "".join(random.SystemRandom().choices("abcdefghijklmnopqrstuvwxyz234567", k=5))
        self.home = Path(tempfile.mkdtemp(prefix="sandlot-"))
        self.home.chmod(0o755)
        self.instance = f"ha{letters}"
        self.link = f"slha{letters}"
        self.netns = f"sandlot-ha{letters}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.runtime = RunscRuntime(
            runsc=_runsc(),
            run_dir=self.home / "run",
            cgroups=Cgroups(self.instance),
            connect=lambda _address, _token: FakeGuest(),
        )

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        future: Future[_T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(120)

    def close(self) -> None:
        try:
            for name in self.do(self.runtime.known()):
                self.do(self.runtime.remove(name))
            self.do(self.runtime.clear())
            self.do(self.runtime.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            subprocess.run(["ip", "link", "delete", self.link], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "netns", "delete", self.netns], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(self.home)

    def wire(self) -> tuple[str, str]:
        """Make the link; return the sandbox's address and this end's."""
        second, third = random.SystemRandom().randrange(256), random.SystemRandom().randrange(256)
        ours, theirs = f"10.{second}.{third}.0", f"10.{second}.{third}.1"
        for words in (
            f"netns add {self.netns}",
            f"-n {self.netns} link set lo up",
            f"link add {self.link} type veth peer name eth0 netns {self.netns}",
            f"address add {ours}/31 dev {self.link}",
            f"link set {self.link} up",
            f"-n {self.netns} address add {theirs}/31 dev eth0",
            f"-n {self.netns} link set eth0 up",
            f"-n {self.netns} route add default via {ours}",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        return theirs, ours


def _runsc() -> Path:
    named = os.environ.get("SANDLOT_RUNSC")
    found = Path(named) if named else (CACHE / "runsc/current/runsc").resolve()
    assert found.exists(), f"there is no runsc at {found}: run the set-up"
    return found


def base_image() -> Path:
    path = (CACHE / "images/base.erofs").resolve()
    assert path.exists(), f"there is no base image at {path}: run the set-up"
    return path


@contextmanager
def sandboxed(**changes: Any) -> Generator[RawGuest]:
    """Start the guest as PID 1 of a sandbox with the base image, not yet initialized."""
    node = Node()
    try:
        theirs, ours = node.wire()
        token = secrets.token_hex(32)
        guest_dir = node.home / "guest"
        guest_dir.mkdir()
        build(guest_dir)
        name = new_id("sbx", os.urandom)
        upper = node.home / "upper"
        upper.mkdir()
        values: dict[str, Any] = {
            "sandbox_id": name,
            "image_path": base_image(),
            "hostname": "sandbox",
            "resources": Resources(memory_mib=512, disk_mib=512, max_processes=MAX_PROCESSES),
            "netns_path": Path("/run/netns") / node.netns,
            "address": theirs,
            "peer": ours,
            "upper_dir": upper,
            "guest_dir": guest_dir,
            "token_sha256": _hash(token),
            "backstop_seconds": None,
        }
        node.do(node.runtime.open())
        node.do(node.runtime.create(Launch(**(values | changes))))
        node.do(node.runtime.start(name))
        with closing(RawGuest(theirs, GUEST_PORT, token, inside=True)) as guest:
            eventually(lambda: _answers(guest))
            yield guest
    finally:
        node.close()


def _answers(guest: RawGuest) -> bool:
    with suppress(OSError):
        return guest.call("GET", "health").status == http.HTTPStatus.OK
    return False
