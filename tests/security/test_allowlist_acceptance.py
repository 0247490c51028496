"""From inside a real sandbox, with programs that people use: what an allowlist says works, and nothing else does."""

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest

from harness import Platform
from internet_kit import Internet, certificate
from names_kit import Zone, answering
from outside_kit import Outside

DNS_ADDRESS: Final = "127.77.0.54"

PSQL: Final = """
import socket, struct, sys
end = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
def send(kind, body):
    end.sendall(kind + struct.pack(">I", 4 + len(body)) + body)
heard = end.makefile("rb")
send(b"", struct.pack(">I", 80877103))
assert heard.read(1) == b"N"
send(b"", struct.pack(">I", 196608) + b"user\\0me\\0\\0")
kind = b""
asked = False
while True:
    kind = heard.read(1)
    body = heard.read(struct.unpack(">I", heard.read(4))[0] - 4)
    if kind == b"D":
        print(body[6:].decode())
    if kind == b"Z":
        if asked:
            break
        asked = True
        send(b"Q", b"SELECT 1\\0")
"""


@pytest.fixture
def outside(tmp_path: Path) -> Generator[Outside]:
    made = Outside(tmp_path)
    internet = Internet(tmp_path / "served", certificate(tmp_path, "pkg.test"))
    with made.serving(), internet.serving(made.pin):
        yield made


@pytest.fixture
def naming(outside: Outside, start_platform: Callable[..., Platform]) -> Generator[Platform]:
    names = {name: [outside.one] for name in ("pkg.test", "a.cdn.test", "bad.cdn.test")}
    names["evil.test"] = [outside.other]
    with answering(Zone(names=names), DNS_ADDRESS):
        yield start_platform(
            egress_exceptions=outside.setting, upstream_resolvers=json.dumps([DNS_ADDRESS]), pool_size="0"
        )


@pytest.fixture
def sandbox(naming: Platform, outside: Outside) -> str:
    return naming.create(egress=policy("pkg.test", "*.cdn.test", f"{outside.network}:5432"))["id"]


def policy(*allow: str) -> dict[str, Any]:
    return {"mode": "allowlist", "allow": list(allow), "deny": ["bad.cdn.test"]}


def run(platform: Platform, sandbox: str, command: str) -> dict[str, Any]:
    body = {"shell": command, "timeout_seconds": 120}
    answer = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def psql(address: str, port: int) -> str:
    return f"python3 - {address} {port} <<'END'\n{PSQL}\nEND"


def pip(name: str) -> str:
    return f"pip install -q --retries 0 --trusted-host {name} --index-url http://{name}/simple --target /tmp/t thing"


def test_programs_reach_exactly_what_is_allowed(naming: Platform, sandbox: str, outside: Outside) -> None:
    for command, said in (
        ("curl -s http://pkg.test/", "hello"),
        ("curl -sk https://a.cdn.test/", "hello"),
        (f"{pip('pkg.test')} && PYTHONPATH=/tmp/t python3 -c 'import thing; print(thing.WORD)'", "installed"),
        ("git clone -q http://a.cdn.test/git/one.git /tmp/one && cat /tmp/one/word", "cloned"),
        (psql(outside.other, 5432), "1"),
    ):
        done = run(naming, sandbox, command)
        assert (done["exit_code"], done["stdout"].strip()) == (0, said), done
    for command in (
        "curl -s http://evil.test/",
        f"curl -s -H 'Host: evil.test' http://{outside.other}/",
        "curl -sk https://bad.cdn.test/",
        f"curl -s http://{outside.other}:5433/",
        pip("evil.test"),
        "git clone -q http://evil.test/git/one.git /tmp/two",
        psql(outside.one, 5433),
        "curl -s --max-time 10 http://169.254.169.254/",
    ):
        done = run(naming, sandbox, command)
        assert done["exit_code"] != 0, (command, done)
        assert done["egress_denied"], command
    rows = naming.http.get(f"/v1/sandboxes/{sandbox}/egress/decisions", params={"verdict": "deny"}).json()["items"]
    told = {(row["via"], row["name"] or row["address"], row["port"], row["reason"], row["rule"]) for row in rows}
    assert told >= {
        ("resolver", "evil.test", None, "not_allowed", "mode_allowlist"),
        ("resolver", "bad.cdn.test", None, "denied_by_rule", "bad.cdn.test"),
        ("proxy", "evil.test", 80, "not_allowed", "mode_allowlist"),
        ("kernel", outside.other, 5433, "not_allowed", "mode_allowlist"),
        ("kernel", outside.one, 5433, "not_allowed", "mode_allowlist"),
    }


def test_a_download_dies_with_its_name_and_the_others_go_on(naming: Platform, sandbox: str) -> None:
    path = f"/v1/sandboxes/{sandbox}/processes"
    loading = {
        name: naming.http.post(path, json={"argv": ["curl", "-sN", "-o", f"/tmp/{name}", f"http://{name}/endless"]})
        for name in ("pkg.test", "a.cdn.test")
    }

    def size(name: str) -> int:
        return int(run(naming, sandbox, f"stat -c %s /tmp/{name} 2>/dev/null || echo 0")["stdout"])

    naming.wait_until(lambda: all(size(name) > 8192 for name in loading), "both are loading")
    changed = naming.http.put(f"/v1/sandboxes/{sandbox}/egress", json=policy("pkg.test"))
    assert changed.status_code == 200, changed.text
    assert changed.json()["closed_connections"] == 1

    def ended() -> dict[str, Any]:
        return naming.http.get(f"{path}/{loading['a.cdn.test'].json()['id']}").json()

    naming.wait_until(lambda: ended()["exit_code"] is not None, "the forbidden one has ended")
    assert ended()["exit_code"] != 0
    before = size("pkg.test")
    naming.wait_until(lambda: size("pkg.test") > before, "the permitted one goes on")
