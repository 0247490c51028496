"""Raw tunnels of real sandboxes: from another machine's place, from this box, through restarts, and to their end."""

import os
import signal
import socket
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import Platform, eventually
from sandboxd.contract.tunnels import GUEST_PORT
from tunnel_kit import Outside, asked, connect, datagrams, silent

SERVER = """
import socket, sys, threading
def talk(connection, source):
    while data := connection.recv(65536):
        connection.sendall(source[0].encode() + b" " + data)
def streams(address, port):
    listening = socket.create_server((address, port))
    while True:
        threading.Thread(target=talk, args=listening.accept(), daemon=True).start()
def packets(address, port):
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((address, port))
    while True:
        data, source = bound.recvfrom(65536)
        bound.sendto(source[0].encode() + b" " + data, source)
for serve in (streams, packets):
    threading.Thread(target=serve, args=(sys.argv[1], int(sys.argv[2])), daemon=serve is streams).start()
"""


@pytest.fixture
def outside(tmp_path: Path) -> Generator[Outside]:
    with Outside(tmp_path / "outside") as made:
        yield made


def served(platform: Platform, *, tunnels: list[dict[str, Any]], port: int = 7000, **fields: Any) -> dict[str, Any]:
    """A sandbox whose server answers on a port, with tunnels."""
    sandbox = platform.create(tunnels=tunnels, **fields)
    serve(platform, sandbox["id"], port)
    return sandbox


def serve(platform: Platform, sandbox_id: str, port: int, address: str = "0.0.0.0") -> None:  # noqa: S104 - inside
    argv = ["python3", "-c", SERVER, address, str(port)]
    platform.http.post(f"/v1/sandboxes/{sandbox_id}/processes", json={"argv": argv}).raise_for_status()
    query = {"port": port, "wait_seconds": 60}

    def both_listen() -> bool:
        items = platform.http.get(f"/v1/sandboxes/{sandbox_id}/ports", params=query).json()["items"]
        return {each["protocol"] for each in items} == {"tcp", "udp"}

    eventually(both_listen, f"port {port} listens")


def tunnel(platform: Platform, sandbox_id: str, **spec: Any) -> dict[str, Any]:
    answer = platform.http.post(f"/v1/sandboxes/{sandbox_id}/tunnels", json={"port": 7000, "kind": "tcp"} | spec)
    assert answer.status_code == 201, answer.text
    return answer.json()


def delete(platform: Platform, sandbox_id: str) -> None:
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0").raise_for_status()


def test_a_printed_address_works_from_outside_and_from_the_box(platform: Platform, outside: Outside) -> None:
    """The server sees the client's own address, whatever the egress policy is."""
    wanted = [{"port": 7000, "kind": "tcp"}, {"port": 7000, "kind": "udp"}]
    sandbox = served(platform, tunnels=wanted, egress={"mode": "blocked"})
    tcp, udp = sandbox["tunnels"]
    came_from = f"{outside.address.ip} hello".encode()
    with connect(outside.pin, str(outside.host.ip), tcp["public_port"]) as stream:
        assert asked(stream, b"hello") == came_from
    with datagrams(outside.pin, str(outside.host.ip), udp["public_port"]) as packets:
        assert asked(packets, b"hello") == came_from
    for host in (tcp["host"], "127.0.0.1", "localhost"):
        with socket.create_connection((host, tcp["public_port"]), 20) as own:
            assert asked(own, b"hello").endswith(b" hello")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.connect((udp["host"], udp["public_port"]))
        assert asked(own, b"hello").endswith(b" hello")
    shown = platform.http.get(f"/v1/sandboxes/{sandbox['id']}/tunnels/{tcp['id']}").json()
    assert shown["in_bytes"] > 100
    assert shown["out_bytes"] > 100
    assert shown["message"] is None
    delete(platform, sandbox["id"])


def test_from_where_it_is_not_allowed_there_is_no_way_in(platform: Platform, outside: Outside) -> None:
    sandbox = served(platform, tunnels=[])
    allowed = tunnel(platform, sandbox["id"], allow_cidrs=[str(outside.address.ip)])
    path = f"/v1/sandboxes/{sandbox['id']}/tunnels/{allowed['id']}"
    with connect(outside.pin, str(outside.host.ip), allowed["public_port"]) as stream:
        assert asked(stream, b"hello").endswith(b" hello")
        platform.http.patch(path, json={"allow_cidrs": ["192.0.2.0/31"]}).raise_for_status()
        assert silent(stream, b"hello")
    with pytest.raises(OSError):  # noqa: PT011 - refused or silent
        connect(outside.pin, str(outside.host.ip), allowed["public_port"], timeout=0.5)
    delete(platform, sandbox["id"])


def test_a_closed_tunnel_is_dead_when_the_answer_comes_and_its_port_rests(platform: Platform, outside: Outside) -> None:
    sandbox = served(platform, tunnels=[])
    first = tunnel(platform, sandbox["id"])
    with connect(outside.pin, str(outside.host.ip), first["public_port"]) as stream:
        asked(stream, b"hello")
        closed = platform.http.delete(f"/v1/sandboxes/{sandbox['id']}/tunnels/{first['id']}")
        assert closed.status_code == 204
        assert silent(stream, b"hello")
    with pytest.raises(OSError):  # noqa: PT011 - refused or silent
        connect(outside.pin, str(outside.host.ip), first["public_port"], timeout=0.5)
    assert tunnel(platform, sandbox["id"])["public_port"] != first["public_port"]
    delete(platform, sandbox["id"])


def test_a_server_on_loopback_is_told_apart_from_none(platform: Platform) -> None:
    sandbox_id = platform.create(tunnels=[])["id"]
    serve(platform, sandbox_id, 7000, "127.0.0.1")
    told = tunnel(platform, sandbox_id)["message"]
    assert "127.0.0.1" in told
    assert "0.0.0.0" in told  # noqa: S104 - words
    assert tunnel(platform, sandbox_id, port=7001)["message"] is None
    delete(platform, sandbox_id)


@pytest.mark.parametrize("kind", ["tcp", "udp", "tls", "http"])
def test_the_guests_port_has_no_tunnel(platform: Platform, kind: str) -> None:
    sandbox_id = platform.create()["id"]
    spec = {"port": GUEST_PORT, "kind": kind}
    assert platform.http.post(f"/v1/sandboxes/{sandbox_id}/tunnels", json=spec).status_code == 422
    delete(platform, sandbox_id)


def test_restarts_of_the_programs_break_no_tunnel(outside: Outside) -> None:
    """Neither a polite one nor a kill -9, under traffic; afterwards it is closed like any other."""
    with harness.platform(heartbeat_seconds="1") as platform:
        wanted = [{"port": 7000, "kind": "tcp"}, {"port": 7000, "kind": "udp"}]
        sandbox = served(platform, tunnels=wanted)
        tcp, udp = sandbox["tunnels"]
        address = str(outside.host.ip)
        with (
            connect(outside.pin, address, tcp["public_port"]) as stream,
            datagrams(outside.pin, address, udp["public_port"]) as packets,
        ):
            for politely in (False, True):
                asked(stream, b"before")
                asked(packets, b"before")
                node = platform.pid("node")
                if politely:
                    platform.stop_programs()
                else:
                    os.kill(node, signal.SIGKILL)
                assert asked(stream, b"meanwhile").endswith(b" meanwhile")
                assert asked(packets, b"meanwhile").endswith(b" meanwhile")
                if politely:
                    platform.start()
                eventually(lambda gone=node: platform.pid("node") != gone, "another node agent runs")
                platform.wait_ready()
                detail = f"/v1/sandboxes/{sandbox['id']}/tunnels/{tcp['id']}"
                platform.wait_until(lambda at=detail: platform.http.get(at).json().get("in_bytes") is not None, "back")
                assert asked(stream, b"after").endswith(b" after")
                assert asked(packets, b"after").endswith(b" after")
                [one, other] = platform.http.get(f"/v1/sandboxes/{sandbox['id']}").json()["tunnels"]
                assert [one["public_port"], other["public_port"]] == [tcp["public_port"], udp["public_port"]]
            platform.http.delete(f"/v1/sandboxes/{sandbox['id']}/tunnels/{tcp['id']}").raise_for_status()
            assert silent(stream, b"closed")
            delete(platform, sandbox["id"])
            assert silent(packets, b"deleted")


def test_traffic_in_a_tunnel_is_use(outside: Outside) -> None:
    """Of a sandbox whose processes do not count."""
    with harness.platform(heartbeat_seconds="1") as platform:
        sandbox = served(
            platform,
            tunnels=[{"port": 7000, "kind": "udp"}],
            idle_timeout_seconds=10,
            idle_ignores_processes=True,
        )
        [udp] = sandbox["tunnels"]
        before = platform.http.get(f"/v1/sandboxes/{sandbox['id']}").json()["last_active_at"]
        with datagrams(outside.pin, str(outside.host.ip), udp["public_port"]) as packets:

            def seen() -> bool:
                asked(packets, b"still here")
                return platform.http.get(f"/v1/sandboxes/{sandbox['id']}").json()["last_active_at"] > before

            eventually(seen, "traffic counts as use")
        ended = platform.ended(sandbox["id"])
        assert ended["reason"] == "idle_timeout"


def test_nothing_is_left_of_tunnels(outside: Outside) -> None:
    with harness.platform() as platform:
        sandbox = served(platform, tunnels=[{"port": 7000, "kind": "tcp"}])
        [tcp] = sandbox["tunnels"]
        name = f"sandlot_{platform.instance}"
        assert str(tcp["public_port"]) in listed(name)
        with connect(outside.pin, str(outside.host.ip), tcp["public_port"]) as stream:
            asked(stream, b"hello")
            delete(platform, sandbox["id"])
            assert silent(stream, b"hello")
        assert "elements" not in listed(name)


def listed(table: str) -> str:
    argv = ["nft", "list", "set", "inet", table, "tunnels"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
