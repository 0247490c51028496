"""Debian's own registry, filled by skopeo, and an image of one static program: what tests pull from."""

import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import cache_dir, eventually
from infra.setup.progress import Progress
from infra.setup.toolchain import GO_ENV, find_go
from registry_kit import MadeImage, make_image, tar_of
from token_server import ISSUER, SERVICE, token_server

PROGRAM = """
package main

import ("fmt"; "os")

func main() {
	dir, _ := os.Getwd()
	_, err := os.Stat("hidden")
	fmt.Println(os.Args[1:], dir, os.Getuid(), os.Getenv("COLOUR"), os.IsNotExist(err))
}
"""
USER, PASSWORD = "ann", "registry-test"
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuujed4HrDNXEIkguQ7k7wh1O2h6/GC./a\n"


@dataclass
class Served:
    """A real registry."""

    host: str
    policy: Path
    password: str | None = None

    def push(self, layout: Path, name: str, tool: str = "oci") -> None:
        """Fill it with skopeo, as others do."""
        creds = ["--dest-creds", f"{USER}:{self.password}"] if self.password else []
        formats = ["--format", "v2s2"] if tool == "docker" else []
        command = ["skopeo", "--policy", str(self.policy), "copy", "-q", "--dest-tls-verify=false", *creds, *formats]
        run(*command, f"oci:{layout}:v1", f"docker://{self.host}/{name}")


def run(*command: str, env: dict[str, str] | None = None, text: str | None = None) -> str:
    done = subprocess.run(command, env=env, input=text, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def registry(program: str, home: Path, password: str | None) -> Generator[Served]:
    home.mkdir()
    auth = ""
    if password is not None:
        (home / "htpasswd").write_text(HTPASSWD)
        auth = f"auth: {{htpasswd: {{realm: test, path: {home}/htpasswd}}}}\n"
    with _serving(program, home, password, auth) as served:
        yield served


@contextmanager
def token_registry(program: str, home: Path, password: str) -> Generator[Served]:
    """One that wants a token of a server of its own, which wants the password."""
    home.mkdir()
    with token_server(home / "token.pem", USER, password) as realm:
        bundle = f"service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {home}/token.pem"
        with _serving(program, home, password, f"auth: {{token: {{realm: '{realm}', {bundle}}}}}\n") as served:
            yield served


@contextmanager
def _serving(program: str, home: Path, password: str | None, auth: str) -> Generator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    (home / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {home}/data}}}}\n"
        f"http: {{addr: '{host}'}}\n{auth}"
    )
    (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(home / "config.yml")], stdout=log, stderr=log)
    try:
        eventually(lambda: answers(host), "the registry")
        yield Served(host, home / "policy.json", password)
    finally:
        process.terminate()
        process.wait()


def answers(host: str) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", int(host.partition(":")[2]))) == 0


def scratch_image(home: Path) -> MadeImage:
    """Nothing but one static program, in two layers of which the upper one hides a file of the lower."""
    sources = home / "program"
    sources.mkdir()
    (sources / "main.go").write_text(PROGRAM)
    go = find_go(Progress(home / "logs"), cache_dir())
    run(go, "build", "-o", str(sources / "say"), str(sources / "main.go"), env={**os.environ, **GO_ENV})
    program = (sources / "say").read_bytes()
    lower = tar_of({"say": (b"not yet", 0o644), "srv/": b"", "srv/hidden": b"x"})
    upper = tar_of({"say": (program, 0o755), "srv/.wh.hidden": b""})
    settings = {"Env": ["COLOUR=blue"], "WorkingDir": "/srv", "User": "1234:99", "Labels": {"who": "test"}}
    return make_image([lower, upper], settings)
