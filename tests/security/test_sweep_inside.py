"""From inside a real sandbox no host address, no other sandbox and no metadata address answers, in either mode."""

import fcntl
import socket
import struct
import threading
from collections.abc import Generator
from contextlib import ExitStack
from typing import Final

import pytest

from egress_targets import answered, forbidden_targets, probe_argv
from harness import Platform

GUEST_PORT: Final = 49979
NEIGHBOUR_PORT: Final = 8000
_SIOCGIFADDR: Final = 0x8915
OWN_ADDRESS: Final = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("192.0.2.1", 9))
    print(probe.getsockname()[0])
"""


@pytest.fixture
def listening() -> Generator[int]:
    """A server on every address of this host, which must not be reached."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", 0), backlog=64))
        ended = threading.Event()
        server.settimeout(0.1)

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        yield server.getsockname()[1]


@pytest.mark.parametrize("mode", ["open", "blocked"])
def test_nothing_that_is_not_public_answers(platform: Platform, listening: int, mode: str) -> None:
    one = platform.create(egress={"mode": mode})["id"]
    other = platform.create(egress={"mode": mode})["id"]
    serving = platform.http.post(
        f"/v1/sandboxes/{other}/processes",
        json={"argv": ["python3", "-m", "http.server", str(NEIGHBOUR_PORT)]},
    )
    assert serving.status_code == 201
    own, neighbour = address_of(platform, one), address_of(platform, other)
    assert own != neighbour
    swept = [*sorted(host_addresses()), neighbour, peer_of(own), peer_of(neighbour)]
    ports = (22, 53, 80, 7070, NEIGHBOUR_PORT, GUEST_PORT, listening)
    targets = forbidden_targets(swept, public="192.0.2.1", ports=ports)
    # Loopback is the sandbox's own, and its guest agent accepts there (to close the connection unread).
    targets = [target for target in targets if not target.address.startswith("127.")]
    done = run(platform, one, probe_argv(targets, patience_seconds=0.5))
    assert answered(done) == []
    # The sweep can see an answer: its own loopback has one.
    itself = platform.http.post(
        f"/v1/sandboxes/{one}/processes",
        json={"argv": ["python3", "-m", "http.server", str(NEIGHBOUR_PORT)]},
    )
    assert itself.status_code == 201
    loopback = forbidden_targets(["127.0.0.1"], public="192.0.2.1", ports=[NEIGHBOUR_PORT])
    platform.wait_until(lambda: answered(run(platform, one, probe_argv(loopback, patience_seconds=0.5))))
    for sandbox in (one, other):
        platform.http.delete(f"/v1/sandboxes/{sandbox}", params={"grace_seconds": 0})


def run(platform: Platform, sandbox: str, argv: list[str]) -> str:
    done = platform.http.post(f"/v1/sandboxes/{sandbox}/run", json={"argv": argv}).json()
    assert done["exit_code"] == 0, done
    return done["stdout"]


def address_of(platform: Platform, sandbox: str) -> str:
    """Return the address a sandbox sees as its own."""
    return run(platform, sandbox, ["python3", "-c", OWN_ADDRESS]).strip()


def peer_of(address: str) -> str:
    """Return the other end of a /31: the router's address in that slot."""
    return socket.inet_ntoa(struct.pack("!I", struct.unpack("!I", socket.inet_aton(address))[0] ^ 1))


def host_addresses() -> set[str]:
    """Return every IPv4 address of this host but loopback."""
    found: set[str] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # a link without an address
            found.add(socket.inet_ntoa(answer[20:24]))
    return {address for address in found if not address.startswith("127.")}
