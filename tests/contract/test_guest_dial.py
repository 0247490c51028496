"""The guest protocol: connections to the sandbox's loopback, over plain TCP."""

import os
import socket
import struct
import threading
import time
from collections.abc import Generator

import pytest

from guest_kit import RawGuest, eventually
from guest_streams import DIAL, RefusedError, upgraded

ECHO = """
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
def serve(peer):
    with peer:
        while data := peer.recv(65536):
            peer.sendall(data)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
ONCE = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
peer, _ = server.accept()
%s
print("served", flush=True)
"""
RESET = "import struct; peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); peer.close()"


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> Generator[RawGuest]:
    yield raw_guest
    for process in raw_guest.call("GET", "processes", query={"state": "running"}).json["items"]:
        raw_guest.signal(process["id"], "SIGKILL")


def listening(guest: RawGuest, program: str) -> tuple[str, int]:
    """Start a server inside; its process and port."""
    process = guest.start(["python3", "-c", program])["id"]
    stream = guest.follow(process)
    stream.until(lambda _: b"\n" in stream.text())
    return process, int(stream.text())


def dial(guest: RawGuest, port: int) -> socket.socket:
    link, early = upgraded(guest, f"dial?port={port}", DIAL)
    assert early == b""
    return link


def read_all(link: socket.socket) -> bytes:
    parts: list[bytes] = []
    while data := link.recv(65_536):
        parts.append(data)
    return b"".join(parts)


def test_bytes_go_both_ways(guest: RawGuest) -> None:
    _, port = listening(guest, ECHO)
    data = os.urandom(3_000_000)
    with dial(guest, port) as link:
        sender = threading.Thread(target=lambda: (link.sendall(data), link.shutdown(socket.SHUT_WR)))
        sender.start()
        assert read_all(link) == data
        sender.join()


def test_each_side_may_end_first(guest: RawGuest) -> None:
    process, port = listening(
        guest, ONCE % "peer.recv(2); peer.sendall(b'bye'); peer.shutdown(1); print(peer.recv(100))"
    )
    with dial(guest, port) as link:
        link.sendall(b"go")
        assert read_all(link) == b"bye"
        link.sendall(b"still here")
    assert guest.ended(process)["exit_code"] == 0
    assert b"still here" in guest.call("GET", f"processes/{process}/output").body


@pytest.mark.parametrize("query", ["port=0", "port=65536", "port=x", "", "port=1&host=x", "port=-1"])
def test_what_is_no_port_is_refused(guest: RawGuest, query: str) -> None:
    with pytest.raises(RefusedError, match="invalid_request"):
        upgraded(guest, f"dial?{query}", DIAL)


def test_the_guests_own_port_is_refused(guest: RawGuest) -> None:
    if guest.inside:  # outside, it has whatever port was free
        with pytest.raises(RefusedError, match="invalid_request"):
            dial(guest, guest.port)


def test_a_port_that_nobody_listens_on(guest: RawGuest) -> None:
    with pytest.raises(RefusedError) as refused:
        dial(guest, 1)
    assert (refused.value.status, refused.value.code, refused.value.body["port"]) == (502, "port_not_listening", 1)
    guest.call("GET", "dial", query={"port": 1}).refused(400, "malformed_request")


def test_a_reset_inside_is_one_outside(guest: RawGuest) -> None:
    _, port = listening(guest, ONCE % f"peer.recv(1); {RESET}")
    with dial(guest, port) as link:
        link.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(link)


@pytest.mark.parametrize("ends_first", [False, True])
def test_a_peer_that_goes_away_is_gone_inside_too(guest: RawGuest, ends_first: bool) -> None:
    """Also one that had said its last word while the server says nothing: nobody writes, so nobody would notice."""
    wait = "import select; p = select.poll(); p.register(peer, select.POLLHUP | select.POLLERR); p.poll()"
    program = ONCE % (f"peer.recv(1) == b'' or exit(1); {wait}" if ends_first else "while peer.recv(1): pass")
    process, port = listening(guest, program)
    link = dial(guest, port)
    if ends_first:
        link.shutdown(socket.SHUT_WR)
        time.sleep(0.1)  # the end arrives before the break
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()
    if ends_first:
        guest.ended(process)
    else:
        eventually(lambda: guest.show(process)["state"] == "ended")


def test_one_that_does_not_read_holds_up_only_itself(guest: RawGuest) -> None:
    _, port = listening(guest, ECHO)
    with dial(guest, port) as slow, dial(guest, port) as fast:
        slow.settimeout(1)
        with pytest.raises(TimeoutError):
            slow.sendall(bytes(64 << 20))
        fast.sendall(b"x")
        assert fast.recv(1) == b"x"
