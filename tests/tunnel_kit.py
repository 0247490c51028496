"""Servers inside slots, and clients outside, for tests of tunnels."""

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Generator
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Self

from network_world import World
from sandboxd.contract.tunnels import NodeTunnel
from sandboxd.network.links import End, Links, Neighbour
from sandboxd.network.netns import pin_here, unpin

PATIENCE_SECONDS = 20
SILENCE_SECONDS = 0.5
"""How long nothing must come where nothing may."""


def tunnel(
    kind: str = "tcp", port: int | None = 7000, *, allow_cidrs: list[str] | None = None, letter: str = "a"
) -> NodeTunnel:
    """A tunnel with an id made of one letter."""
    return NodeTunnel.model_validate(
        {"id": f"tun{letter * 20}", "port": port, "kind": kind, "allow_cidrs": allow_cidrs or []}
    )


class Server:
    """Answers each line of TCP, and each datagram, with the address it came from and what it said."""

    def __init__(self, pin: Path, port: int, address: str = "") -> None:
        self.accepted: list[socket.socket] = []
        self._stream = World.do(pin, lambda: _listen(address, port))
        self._datagrams = World.do(pin, lambda: _bind(address, port))
        self._threads = [
            threading.Thread(target=self._accept, daemon=True),
            threading.Thread(target=self._answer, daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        for each in (self._stream, self._datagrams, *self.accepted):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, source = self._stream.accept()
                self.accepted.append(connection)
                threading.Thread(target=self._talk, args=(connection, source), daemon=True).start()

    def _talk(self, connection: socket.socket, source: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(source[0].encode() + b" " + data)

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, source = self._datagrams.recvfrom(65536)
                if not source:  # shut down
                    return
                self._datagrams.sendto(source[0].encode() + b" " + data, source)


@contextlib.contextmanager
def serving(pin: Path, port: int, address: str = "") -> Generator[Server]:
    server = Server(pin, port, address)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connect(
    pin: Path, address: str, port: int, *, source: str = "", timeout: float = PATIENCE_SECONDS
) -> socket.socket:
    """Connect by TCP from a namespace."""
    return World.do(pin, lambda: socket.create_connection((address, port), timeout, (source, 0) if source else None))


def datagrams(pin: Path, address: str, port: int, *, source: str = "") -> socket.socket:
    """Return a UDP socket of a namespace, connected."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if source:
            made.bind((source, 0))
        made.connect((address, port))
        made.settimeout(PATIENCE_SECONDS)
        return made

    return World.do(pin, make)


def asked(client: socket.socket, data: bytes) -> bytes:
    """Say something and return what is answered."""
    client.settimeout(PATIENCE_SECONDS)
    client.sendall(data)
    return client.recv(65536)


def silent(client: socket.socket, data: bytes) -> bool:
    """Whether what is said there is answered by nothing: no data, for a while, or an end."""
    client.settimeout(SILENCE_SECONDS)
    try:
        client.sendall(data)
        return client.recv(65536) == b""
    except OSError:
        return True


def _listen(address: str, port: int) -> socket.socket:
    return socket.create_server((address, port), backlog=64)


def _bind(address: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((address, port))
    return bound


class Outside:
    """A namespace at the other end of a link to this machine: a client that is really somewhere else."""

    def __init__(self, pin: Path) -> None:
        self.pin = pin
        number = secrets.randbelow(1 << 14) * 2
        self.host = IPv4Interface(f"{IPv4Address('10.98.0.0') + number}/31")
        """This machine's end."""
        self.address = IPv4Interface(f"{IPv4Address('10.98.0.1') + number}/31")
        self._link = f"out{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        World.do(None, lambda: pin_here(self.pin))
        try:
            self._wire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with Links() as links:
            link = links.find(self._link)
            if link is not None:
                links.delete(link.index)
        unpin(self.pin)

    def _wire(self) -> None:
        near, far = bytes.fromhex("025e00000001"), bytes.fromhex("025e00000002")
        handle = os.open(self.pin, os.O_RDONLY)
        try:
            with Links() as links:
                links.make_veth(End(name=self._link, mac=near), End(name="eth0", mac=far), handle, 1500)
                link = links.find(self._link)
                assert link is not None
                links.configure(link.index, address=self.host, neighbour=Neighbour(self.address.ip, far))
        finally:
            os.close(handle)

        def inside() -> None:
            with Links() as links:
                links.configure(1)
                there = Neighbour(self.host.ip, near)
                eth0 = links.find("eth0")
                assert eth0 is not None
                links.configure(eth0.index, address=self.address, neighbour=there, gateway=there.address)

        World.do(self.pin, inside)
