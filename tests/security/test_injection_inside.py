"""From inside a real sandbox: the server gets the secret, and nothing in the sandbox or on the node's disk has it."""

import base64
import contextlib
import json
import os
import secrets
import signal
import ssl
import threading
from collections.abc import Callable, Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from test_names_inside import decisions, programs, run

from harness import Platform
from injection_kit import Authority, authority
from names_kit import Zone, answering
from network_world import World
from outside_kit import Outside
from sandboxd.hooks.trust import AUTHORITY_FILE, VARIABLES

NEEDLE: Final = secrets.token_hex(24)
PROJECT: Final = authority("project")
ENTRY: Final = {
    "host": "api.test", "header": "Authorization", "value_from": {"secret": "token"}, "format": "Bearer {value}",
}  # fmt: skip
ASK: Final = """
import json, sys, urllib.error, urllib.request
for url in sys.argv[1:]:
    try:
        asked = urllib.request.Request(url, headers={"Authorization": "mine"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            print(answer.status, answer.url)
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().strip())
    except OSError as error:
        print(type(error).__name__, "CERTIFICATE" if "CERTIFICATE_VERIFY_FAILED" in str(error) else "")
"""
LOOK: Final = """
import os, subprocess, sys, time
needle = bytes.fromhex(sys.argv[1])
found = []
for top, directories, files in os.walk("/"):
    if top == "/":
        directories[:] = [name for name in directories if name not in ("proc", "sys", "dev")]
    for name in files:
        path = os.path.join(top, name)
        try:
            if os.lstat(path).st_ctime < time.time() - 3600:
                continue  # the image's
            with open(path, "rb") as file:
                if needle in file.read(1 << 26):
                    found.append(path)
        except OSError:
            pass
asking = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status, flush=True); input()"
argv = [sys.executable, "-c", asking, sys.argv[2]]
asked = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert asked.stdout.readline() == b"200\\n"
read = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    for part in ("environ", "cmdline"):
        try:
            with open(f"/proc/{pid}/{part}", "rb") as file:
                if needle in file.read():
                    found.append(f"{pid} {part}")
        except OSError:
            pass
    if int(pid) == os.getpid():
        continue
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, rights = line.split()[:2]
                first, last = (int(part, 16) for part in span.split("-"))
                if "r" not in rights or last - first > 1 << 26:
                    continue
                try:
                    memory.seek(first)
                    if needle in memory.read(last - first):
                        found.append(f"{pid} memory {span}")
                    read += 1
                except (OSError, OverflowError):
                    pass  # the kernel's own
    except OSError as error:
        print(pid, error, file=sys.stderr)
asked.communicate(b"\\n")
print(read, found)
"""


class Real(ThreadingHTTPServer):
    """A server outside that keeps what it was sent; it says none of it back."""

    daemon_threads = True

    def __init__(self, pin: Path, address: str, context: ssl.SSLContext) -> None:
        self.got: list[tuple[str, str | None]] = []

        def bound() -> None:
            super(Real, self).__init__((address, 443), _Answer)

        World.do(pin, bound)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @contextlib.contextmanager
    def serving(self) -> Generator["Real"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever gives up a handshake is no news."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Real)
        self.server.got.append((self.path, self.headers.get("Authorization")))
        self.send_response(302 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", "https://other.test/arrived")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Say nothing."""


class Scene:
    def __init__(self, platform: Platform, api: Real, other: Real) -> None:
        self.platform = platform
        self.api = api
        self.other = other
        self.generation: dict[str, int] = {}

    def inject(self, sandbox: str, *, credentials: bool = True, renewed: bool = True, **policy: Any) -> None:
        """Apply a policy as the api would; not `renewed`: the present one, once more."""
        if renewed:
            self.generation[sandbox] = self.generation.get(sandbox, 100) + 1
        told = {
            "ca_certificate": PROJECT.certificate,
            "ca_key": PROJECT.key,
            "values": {"token": base64.b64encode(NEEDLE.encode()).decode()},
        }
        policy = policy or {"mode": "allowlist", "allow": ["other.test"], "inject": [ENTRY]}
        with self.platform.node_http() as node:
            epoch = node.get("/node/v1/report").json()["epoch"]
            body = {"epoch": epoch, "egress": policy | {"generation": self.generation[sandbox]}}
            answer = node.put(
                f"/node/v1/sandboxes/{sandbox}/egress", json=body | ({"credentials": told} if credentials else {})
            )
            assert answer.status_code == 200, answer.text

    def ask(self, sandbox: str, *urls: str) -> list[str]:
        return run(self.platform, sandbox, "python3", "-c", ASK, *urls)["stdout"].splitlines()


@pytest.fixture(name="outer")
def _outer() -> Authority:
    return authority("outer")


@pytest.fixture(name="scene")
def _scene(tmp_path: Path, outer: Authority, start_platform: Callable[..., Platform]) -> Iterator[Scene]:
    outside = Outside(tmp_path)
    dns = f"127.78.{secrets.randbelow(255)}.{1 + secrets.randbelow(254)}"
    (tmp_path / "outer.pem").write_text(outer.certificate)
    names = {"api.test": [outside.one], "other.test": [outside.other], "liar.test": [outside.other]}
    with (
        outside.serving(80),
        Real(outside.pin, outside.one, outer.issue(tmp_path, "api.test")).serving() as api,
        Real(outside.pin, outside.other, outer.issue(tmp_path, "other.test")).serving() as other,
        answering(Zone(names=names | {"inner.test": ["10.0.0.1"]}), dns),
    ):
        started = start_platform(
            egress_exceptions=outside.setting,
            upstream_resolvers=json.dumps([dns]),
            inject_authorities_file=str(tmp_path / "outer.pem"),
            log_level="debug",
            pool_size="0",
            pool_max="0",
        )
        yield Scene(started, api, other)


def test_the_server_gets_it_and_nothing_else_has_it(scene: Scene) -> None:
    platform = scene.platform
    # As a create with such a policy would have it.
    sandbox = platform.create(env=VARIABLES)["id"]
    stranger = platform.create(egress={"mode": "allowlist", "allow": ["api.test"]})["id"]
    scene.inject(sandbox)

    assert scene.ask(sandbox, "https://api.test/one", "https://api.test/away") == [
        "200 https://api.test/one",
        "URLError CERTIFICATE",
    ]
    assert scene.api.got == [("/one", f"Bearer {NEEDLE}"), ("/away", f"Bearer {NEEDLE}")]
    # The one it was sent on to shows its own certificate: nobody here speaks for it, so it is not trusted inside.
    assert scene.other.got == []
    assert scene.ask(stranger, "https://api.test/") == ["URLError CERTIFICATE"]
    assert len(scene.api.got) == 2

    body = {
        "argv": ["python3", "-c", LOOK, NEEDLE.encode().hex(), "https://api.test/look"],
        "user": "0",
        "timeout_seconds": 120,
    }
    looked = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json=body).json()
    assert looked["exit_code"] == 0, looked["stderr"]
    count, _, found = looked["stdout"].strip().partition(" ")
    assert (found, int(count) > 0) == ("[]", True), looked["stderr"]
    assert NEEDLE not in json.dumps(decisions(platform, sandbox))
    assert not _on_disk(platform)
    for name, text in platform.logs().items():
        assert NEEDLE not in text, name


def test_what_closes_it_and_opens_it_again(scene: Scene) -> None:
    platform = scene.platform
    sandbox = platform.create(env=VARIABLES)["id"]
    inner = {**ENTRY, "host": "inner.test"}
    liar = {**ENTRY, "host": "liar.test"}
    scene.inject(sandbox, mode="open", inject=[ENTRY, inner, liar])
    api, inside, lied = scene.ask(sandbox, "https://api.test/", "https://inner.test/", "https://liar.test/")
    assert api == "200 https://api.test/"
    assert inside.startswith("URLError")  # it has no address at all
    assert lied.startswith("502 sandlot: the certificate of liar.test is not trusted")
    reasons = {(row["name"], row["reason"]) for row in decisions(platform, sandbox, verdict="deny")}
    assert {("inner.test", "private_address"), ("liar.test", "certificate_refused")} <= reasons

    for pid in programs(platform):
        os.kill(pid, signal.SIGKILL)
    platform.wait_until(lambda: scene.ask(sandbox, "https://api.test/") == ["200 https://api.test/"], "it is back")

    os.kill(platform.pid("node"), signal.SIGKILL)
    platform.wait_ready()
    count = len(scene.api.got)
    # Nothing was told to the new agent: closed, and never open without the header.
    platform.wait_until(lambda: _missing(platform, sandbox), "the node says what it lacks")

    def is_told() -> bool:
        assert "200" not in scene.ask(sandbox, "https://api.test/")[0]
        rows = decisions(platform, sandbox, verdict="deny")
        return ("api.test", "credentials_missing") in {(row["name"], row["reason"]) for row in rows}

    platform.wait_until(is_told, "the denial is told")
    assert len(scene.api.got) == count
    scene.inject(sandbox, renewed=False, mode="open", inject=[ENTRY, inner, liar])
    assert not _missing(platform, sandbox)
    assert scene.ask(sandbox, "https://api.test/") == ["200 https://api.test/"]
    assert {value for _, value in scene.api.got} == {f"Bearer {NEEDLE}"}
    assert scene.other.got == []


def test_from_a_secret_to_a_request_and_through_a_restart(scene: Scene) -> None:
    platform = scene.platform
    answer = platform.http.put("/v1/secrets/token", json={"value": NEEDLE, "hosts": ["api.test"]})
    assert answer.status_code == 201, answer.text
    egress = {"mode": "allowlist", "inject": [ENTRY]}
    sandbox = platform.create(egress=egress)["id"]
    assert scene.ask(sandbox, "https://api.test/") == ["200 https://api.test/"]
    node = "require('https').get(process.argv[1], answer => console.log(answer.statusCode))"
    assert run(platform, sandbox, "node", "-e", node, "https://api.test/node")["stdout"].strip() == "200"
    os.kill(platform.pid("node"), signal.SIGKILL)
    platform.wait_ready()
    platform.wait_until(lambda: scene.ask(sandbox, "https://api.test/") == ["200 https://api.test/"], "it is back")
    assert platform.http.put("/v1/secrets/token", json={"value": "another", "hosts": ["api.test"]}).status_code == 200
    later = platform.create(egress=egress)["id"]
    assert scene.ask(later, "https://api.test/") == ["200 https://api.test/"]
    assert {value for _, value in scene.api.got} == {f"Bearer {NEEDLE}", "Bearer another"}
    assert not _on_disk(platform)


def test_programs_with_trust_of_their_own(scene: Scene) -> None:
    sandbox = scene.platform.create(env=VARIABLES)["id"]
    scene.inject(sandbox)
    node = "require('https').get(process.argv[1], answer => console.log(answer.statusCode))"
    assert run(scene.platform, sandbox, "node", "-e", node, "https://api.test/node")["stdout"].strip() == "200"
    curl = (
        "command -v curl >/dev/null || { echo 200; exit; }; curl -sS -o /dev/null -w '%{http_code}' https://api.test/c"
    )
    assert run(scene.platform, sandbox, "sh", "-c", curl)["stdout"].strip() == "200"
    assert {value for _, value in scene.api.got} == {f"Bearer {NEEDLE}"}


def test_without_the_policy_it_is_end_to_end_again(scene: Scene) -> None:
    sandbox = scene.platform.create()["id"]
    scene.inject(sandbox)
    assert run(scene.platform, sandbox, "cat", AUTHORITY_FILE)["stdout"] == PROJECT.certificate
    assert scene.ask(sandbox, "https://api.test/") == ["200 https://api.test/"]
    scene.inject(sandbox, mode="allowlist", allow=["api.test"])
    assert scene.ask(sandbox, "https://api.test/") == ["URLError CERTIFICATE"]
    assert len(scene.api.got) == 1


def _missing(platform: Platform, sandbox: str) -> bool:
    with platform.node_http() as node:
        return node.get(f"/node/v1/sandboxes/{sandbox}").json()["credentials_missing"]


def _on_disk(platform: Platform) -> list[str]:
    """Return the files of the node that have it, in either form."""
    needles = (NEEDLE.encode(), base64.b64encode(NEEDLE.encode()))
    found: list[str] = []
    for root in (platform.config.data_dir, platform.config.run_dir):
        for path in root.rglob("*"):
            if path.suffix == ".erofs" or path.is_symlink() or not path.is_file():
                continue
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                found += [str(path) for needle in needles if needle in content]
    return found
