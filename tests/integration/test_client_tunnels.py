"""Tunnels through the client and the command line."""

import json
from collections.abc import Iterator

import pytest

from cli_kit import sandlot
from sandlot import Client, ConfigurationError, NotFoundError, RetryPolicy, Sandbox
from stub_api import Fault, StubApi, running


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


def test_opened_listed_changed_closed(api: StubApi) -> None:
    name = api.add_sandbox(name="box")["id"]
    with Client(api.url, api.key, retries=RetryPolicy(attempts=3, first_seconds=0)) as client:
        box = Sandbox.get(name, client=client)
        ssh = box.tunnels.open(22, allow_cidrs=["192.0.2.0/24"])
        assert (ssh.kind, ssh.port, ssh.allow_cidrs, ssh.address) == ("tcp", 22, ["192.0.2.0/24"], "stub.test:20000")
        web = box.tunnels.open(None, "http", visibility="public")
        assert (web.port, web.visibility, web.address) == (None, "public", "http://stub.test/s")
        assert box.tunnels.open(22, allow_cidrs=["192.0.2.0/24"]) == ssh
        assert box.tunnels.list() == [ssh, web]
        assert box.tunnels.change(ssh.id, allow_cidrs=[]).allow_cidrs == []
        assert box.tunnels.get(ssh.id).in_bytes == 1024
        box.tunnels.close(ssh.id)
        with pytest.raises(NotFoundError):
            box.tunnels.get(ssh.id)
    assert api.violations == []


def test_a_lost_answer_to_a_close_is_asked_again_and_is_a_success(api: StubApi) -> None:
    name = api.add_sandbox(name="box")["id"]
    with Client(api.url, api.key, retries=RetryPolicy(attempts=3, first_seconds=0)) as client:
        box = Sandbox.get(name, client=client)
        ssh = box.tunnels.open(22)
        api.faults = [Fault(f"DELETE /v1/sandboxes/{name}/tunnels/{ssh.id}", drop="after")]
        box.tunnels.close(ssh.id)
        with pytest.raises(NotFoundError):
            box.tunnels.close(ssh.id)


def test_a_link_opens_a_port_to_whoever_has_it(api: StubApi) -> None:
    name = api.add_sandbox(name="box")["id"]
    api.tokens = ["t1", "t2", "t3", "t4", "t5"]
    with Client(api.url, api.key, retries=RetryPolicy(attempts=3, first_seconds=0)) as client:
        box = Sandbox.get(name, client=client)
        web = box.tunnels.open(8000, "http")
        assert box.tunnels.link(web).url == "http://8000-box.stub.test/?sandlot_token=t1"
        assert box.tunnels.link(web, "/a?b=c", expires_in_seconds=60, identity={"user": "ada"}).url == (
            "http://8000-box.stub.test/a?b=c&sandlot_token=t2"
        )
        by_path = box.tunnels.link(web, "x", form="path")
        assert by_path.url == f"http://stub.test/s/{name}/8000/x?sandlot_token=t3"
        assert "t3" not in repr(by_path)
        whole = box.tunnels.link(web, "/lab", form="whole-path")
        assert whole.url == f"http://stub.test/w/{name}/8000/lab?sandlot_token=t4"
        ssh = box.tunnels.open(22)
        with pytest.raises(ConfigurationError):
            box.tunnels.link(ssh, form="path")
    assert api.violations == []


def test_the_command_for_a_link_opens_what_is_missing(api: StubApi) -> None:
    api.add_sandbox(name="box")
    api.tokens = ["t1", "t2"]
    assert sandlot(api, "tunnel", "link", "box", "8000").stdout == b"http://8000-box.stub.test/?sandlot_token=t1\n"
    again = json.loads(sandlot(api, "tunnel", "link", "box", "8000", "/lab", "--seconds", "60", "--json").stdout)
    assert again["url"] == "http://8000-box.stub.test/lab?sandlot_token=t2"
    assert again["expires_at"].startswith("2999-01-01")
    assert len(json.loads(sandlot(api, "tunnel", "ls", "box", "--json").stdout)) == 1
    assert api.violations == []


def test_the_commands(api: StubApi) -> None:
    api.add_sandbox(name="box")
    opened = sandlot(api, "tunnel", "open", "box", "5000", "--kind", "udp", "--allow", "192.0.2.0/24")
    assert (opened.returncode, opened.stdout) == (0, b"stub.test:20000\n")
    assert sandlot(api, "tunnel", "open", "box", "any", "-k", "http").stdout == b"http://stub.test/s\n"
    listed = sandlot(api, "tunnel", "ls", "box").stdout.decode()
    assert "stub.test:20000" in listed
    assert "192.0.2.0/24" in listed
    shown = json.loads(sandlot(api, "tunnel", "ls", "box", "--json").stdout)
    assert [each["kind"] for each in shown] == ["udp", "http"]
    closed = sandlot(api, "tunnel", "close", "box", "udp:5000", shown[1]["id"])
    assert closed.stdout.decode().split() == [each["id"] for each in shown]
    assert json.loads(sandlot(api, "tunnel", "ls", "box", "--json").stdout) == []
    assert sandlot(api, "tunnel", "close", "box", "udp:5000").returncode == 1
    assert sandlot(api, "tunnel", "open", "box", "0").returncode == 2
    assert sandlot(api, "tunnel", "open", "box", "22", "--public").returncode == 2
    assert api.violations == []
