"""What tunnels must not open: other ports, other sandboxes, the host, and a way out."""

import contextlib
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

import harness
from harness import Platform
from network_world import World
from sandboxd.contract.tunnels import GUEST_PORT
from tunnel_kit import Outside, asked, connect, datagrams, silent

RANGE = range(20_000, 20_064)
ANSWER = (
    "import socket, threading\n"
    "bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); bound.bind(('0.0.0.0', 7000))\n"
    "listening = socket.create_server(('0.0.0.0', 7000))\n"
    "def serve():\n"
    "    while True:\n"
    "        connection, _ = listening.accept()\n"
    "        connection.sendall(b'tcp'); connection.close()\n"
    "threading.Thread(target=serve, daemon=True).start()\n"
    "while True:\n"
    "    data, source = bound.recvfrom(100)\n"
    "    bound.sendto(b'udp', source)\n"
    "    for port in range(9000, 9004):\n"
    "        bound.sendto(b'out', (source[0], port))\n"
)
REACH = (
    "import socket, sys\n"
    "for port in (9000, 9001):\n"
    "    for own in (0, 7000, 7001):\n"
    "        s = socket.socket(); s.settimeout(2); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
    "        try:\n"
    "            s.bind(('0.0.0.0', own)); s.connect((sys.argv[1], port)); print('reached', own, port)\n"
    "        except OSError as error:\n"
    "            print('not', own, port, error.errno)\n"
)


@pytest.fixture
def outside(tmp_path: Path) -> Generator[Outside]:
    with Outside(tmp_path / "outside") as made:
        yield made


@pytest.fixture
def platform() -> Generator[Platform]:
    with harness.platform(tunnel_ports=f"{RANGE.start}-{RANGE.stop - 1}") as started:
        yield started


def serving_sandbox(platform: Platform, mode: str) -> tuple[str, dict[str, int]]:
    wanted = [{"port": 7000, "kind": kind} for kind in ("tcp", "udp")]
    sandbox = platform.create(tunnels=wanted, egress={"mode": mode})
    path = f"/v1/sandboxes/{sandbox['id']}"
    platform.http.post(f"{path}/processes", json={"argv": ["python3", "-c", ANSWER]}).raise_for_status()
    platform.http.get(f"{path}/ports", params={"port": 7000, "wait_seconds": 60}).raise_for_status()
    return sandbox["id"], {each["kind"]: each["public_port"] for each in sandbox["tunnels"]}


def test_a_scan_of_the_range_finds_the_tunnels_alone(platform: Platform, outside: Outside) -> None:
    """Neither the other protocol on their ports, nor the guest's port, nor the sandbox's address."""
    sandbox_id, ports = serving_sandbox(platform, "blocked")
    address = str(outside.host.ip)
    with connect(outside.pin, address, ports["tcp"]) as stream:
        assert stream.recv(100) == b"tcp"
    with datagrams(outside.pin, address, ports["udp"]) as packets:
        assert asked(packets, b"hello") == b"udp"
    found = {("tcp", port) for port in (*RANGE, 7000, GUEST_PORT) if _opens(outside, address, port)}
    assert found == {("tcp", ports["tcp"])}
    quiet = [port for port in (*RANGE[::8], ports["tcp"], 7000, GUEST_PORT) if port != ports["udp"]]
    for port in quiet:
        with datagrams(outside.pin, address, port) as packets:
            assert silent(packets, b"hello"), port
    with platform.node_http() as node:
        inner = node.get(f"/node/v1/sandboxes/{sandbox_id}").json()["address"]
    for port in (7000, GUEST_PORT, *ports.values()):
        assert not _opens(outside, inner, port)
    platform.http.delete(f"/v1/sandboxes/{sandbox_id}?grace_seconds=0").raise_for_status()


@pytest.mark.parametrize("mode", ["blocked", "open"])
def test_a_sandbox_begins_nothing_through_its_tunnel(platform: Platform, outside: Outside, mode: str) -> None:
    """Not to the client it talks to, from whatever port, and not to another sandbox's tunnel by the host's address."""
    sandbox_id, ports = serving_sandbox(platform, mode)
    other_id, others = serving_sandbox(platform, mode)
    client, host = str(outside.address.ip), str(outside.host.ip)
    with contextlib.ExitStack() as stack:
        listening = [World.do(outside.pin, lambda port=port: _ear(port)) for port in range(9000, 9004)]
        for ear in listening:
            stack.enter_context(ear)
        for port in (9000, 9001):
            stack.enter_context(World.do(outside.pin, lambda port=port: socket.create_server(("", port))))
        stream = stack.enter_context(connect(outside.pin, host, ports["tcp"]))
        assert stream.recv(100) == b"tcp"
        packets = stack.enter_context(datagrams(outside.pin, host, ports["udp"]))
        assert asked(packets, b"hello") == b"udp"
        for target in (client, host):
            body = {"argv": ["python3", "-c", REACH, target], "timeout_seconds": 60}
            said = platform.http.post(f"/v1/sandboxes/{sandbox_id}/run", json=body).json()
            assert said["exit_code"] == 0, said
            assert "reached" not in said["stdout"]
        for port in (others["tcp"], ports["tcp"]):
            shell = f"python3 -c \"import socket; socket.create_connection(('{host}', {port}), 3)\""
            said = platform.http.post(f"/v1/sandboxes/{sandbox_id}/run", json={"shell": shell}).json()
            assert said["exit_code"] == 1, said
        for ear in listening:
            with pytest.raises(BlockingIOError):
                ear.recv(100)
    for each in (sandbox_id, other_id):
        platform.http.delete(f"/v1/sandboxes/{each}?grace_seconds=0").raise_for_status()


def _opens(outside: Outside, address: str, port: int) -> bool:
    try:
        connect(outside.pin, address, port, timeout=0.3).close()
    except OSError:
        return False
    return True


def _ear(port: int) -> socket.socket:
    """A UDP socket that hears what comes to a port."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    return made
