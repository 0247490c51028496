"""A host and an internet of namespaces of their own, so that network tests touch nothing of the machine's.

The internet answers on every address it is asked for, private ones too: what stays silent there was stopped here.
"""

import contextlib
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Generator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Self, TypeVar

from netpolicy.netlink import ACK, CREATE, Message, attribute
from sandboxd.network.links import End, Links, Neighbour
from sandboxd.network.netns import NamespaceThread, inside, pin_here, unpin

PUBLIC = "93.184.216.34"
HOST_PUBLIC = "45.33.8.2"
HOST_PRIVATE = "172.20.0.5"
_INTERNET_END = "45.33.8.1"
_MTU = 1400
_PORTS = (22, 25, 53, 80, 443, 8080)
_PKTINFO = 8
_MAIN_TABLE = 254
_SCOPE_HOST = 254
_UNICAST, _LOCAL = 1, 2
_STATIC = 4
_NEW_ROUTE = 24

_T = TypeVar("_T")


class World:
    """A host's namespace whose default route leads to an internet's, with servers on both."""

    def __init__(self, directory: Path, ports: tuple[int, ...] = _PORTS) -> None:
        self._ports = ports
        self.host_netns = directory / "host"
        self.internet_netns = directory / "internet"
        self.heard: list[tuple[str, str, bytes]] = []
        """Whatever reached the internet's servers: address it was meant for, address it came from, data."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            for pin in (self.host_netns, self.internet_netns):
                undo.callback(unpin, pin)
                self.do(None, lambda pin=pin: pin_here(pin))
            self.do(self.host_netns, self._wire)
            self.do(self.internet_netns, self._wire_internet)
            undo.enter_context(self.serving(self.host_netns, _PORTS))
            undo.enter_context(self.serving(self.internet_netns, self._ports))
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def do(pin: Path | None, job: Callable[[], _T]) -> _T:
        """Do something in a namespace, or a new one; programs started there run there."""

        def there() -> _T:
            with inside(pin):
                return job()

        thread = NamespaceThread("world", None)
        thread.start()
        try:
            return thread.call(there)
        finally:
            thread.close()

    @classmethod
    def nft(cls, pin: Path, text: str) -> None:
        cls.do(pin, lambda: subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True))

    @classmethod
    def run_inside(cls, pin: Path, argv: list[str]) -> str:
        return cls.do(pin, lambda: subprocess.run(argv, capture_output=True, text=True, check=True).stdout)

    @classmethod
    def route(cls, pin: Path, network: str, link: str) -> None:
        """Send a network to whoever is at the other end of a /31."""

        def add() -> None:
            with Links() as links:
                found = links.find(link)
                assert found is not None
                other = next(neighbour.address for neighbour in links.neighbours(found.index))
                _route(links, IPv4Network(network), found.index, gateway=other)

        cls.do(pin, add)

    @contextlib.contextmanager
    def serving(self, pin: Path, ports: tuple[int, ...]) -> Generator[None, None, None]:
        """Answer by echo on every TCP and UDP port named, on all addresses, until the end."""
        listening = self.do(pin, lambda: [_listen(port) for port in ports])
        datagrams = self.do(pin, lambda: [_bind(port) for port in ports])
        reader, writer = os.pipe()
        thread = threading.Thread(target=self._serve, args=(listening, datagrams, reader))
        thread.start()
        try:
            yield
        finally:
            os.close(writer)
            thread.join()
            os.close(reader)

    def _serve(self, listening: list[socket.socket], datagrams: list[socket.socket], ended: int) -> None:
        connections: list[socket.socket] = []
        while True:
            ready, _, _ = select.select([*listening, *datagrams, *connections, ended], [], [])
            if ended in ready:
                break
            for item in (item for item in ready if isinstance(item, socket.socket)):
                if item in listening:
                    connections.append(item.accept()[0])
                elif item in datagrams:
                    self._answer(item)
                elif not self._echo(item):
                    connections.remove(item)
                    item.close()
        for item in (*listening, *datagrams, *connections):
            item.close()

    def _answer(self, item: socket.socket) -> None:
        data, ancillary, _, source = item.recvmsg(2048, 128)
        # Where it was meant for, and from where the answer must come.
        meant = next(info[8:12] for level, kind, info in ancillary if (level, kind) == (socket.IPPROTO_IP, _PKTINFO))
        self.heard.append((socket.inet_ntoa(meant), source[0], data))
        with contextlib.suppress(OSError):
            info = struct.pack("=I4s4s", 0, meant, bytes(4))
            item.sendmsg([data], [(socket.IPPROTO_IP, _PKTINFO, info)], 0, source)

    def _echo(self, connection: socket.socket) -> bool:
        try:
            data = connection.recv(65536)
            if data:
                self.heard.append((connection.getsockname()[0], connection.getpeername()[0], data))
                connection.sendall(data)
        except OSError:
            return False
        return bool(data)

    def _wire(self) -> None:
        with Links() as links:
            links.configure(1)
            near, far = bytes.fromhex("025d00000001"), bytes.fromhex("025d00000002")
            handle = os.open(self.internet_netns, os.O_RDONLY)
            try:
                links.make_veth(End(name="eth0", mac=near, index=7), End(name="wan", mac=far, index=7), handle, _MTU)
            finally:
                os.close(handle)
            there = Neighbour(IPv4Address(_INTERNET_END), far)
            links.configure(7, address=IPv4Interface(f"{HOST_PUBLIC}/24"))
            links.configure(7, address=IPv4Interface(f"{HOST_PRIVATE}/32"))
            links.configure(7, neighbour=there, gateway=there.address)

    def _wire_internet(self) -> None:
        """Every address there is, is local here, but for the host's own network."""
        with Links() as links:
            links.configure(1)
            links.configure(7, address=IPv4Interface(f"{_INTERNET_END}/24"))
            links.configure(7, neighbour=Neighbour(IPv4Address(HOST_PUBLIC), bytes.fromhex("025d00000001")))
            for half in ("0.0.0.0/1", "128.0.0.0/1"):
                _route(links, IPv4Network(half), 1, local=True)


def _route(
    links: Links, network: IPv4Network, link: int, *, gateway: IPv4Address | None = None, local: bool = False
) -> None:
    kind, scope = (_LOCAL, _SCOPE_HOST) if local else (_UNICAST, 0)
    header = struct.pack("=8BI", socket.AF_INET, network.prefixlen, 0, 0, _MAIN_TABLE, _STATIC, scope, kind, 0)
    body = attribute(1, network.network_address.packed) + attribute(4, struct.pack("=I", link))
    if gateway is not None:
        body += attribute(5, gateway.packed)
    links._netlink.change([Message(_NEW_ROUTE, ACK | CREATE, header + body)])


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("", port))
    listening.listen(64)
    return listening


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.IPPROTO_IP, _PKTINFO, 1)
    bound.bind(("", port))
    return bound
