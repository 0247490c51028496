"""Links, addresses, routes and neighbours of one namespace, by route netlink. IPv4 only."""

import errno
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Self

from netpolicy.netlink import (
    ACK,
    CREATE,
    EXCLUSIVE,
    REPLACE,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    text_attribute,
)

_ROUTE = 0
_NEW_LINK, _DELETE_LINK, _GET_LINK, _SET_LINK = 16, 17, 18, 19
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _GET_ROUTE = 24, 26
_NEW_NEIGHBOUR, _GET_NEIGHBOUR = 28, 30

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE_HEADER = struct.Struct("=8BI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")

_UP = 0x1
_PERMANENT = 0x80
_MAIN_TABLE = 254
_STATIC = 4
_UNICAST = 1
_DUMP_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel has it."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a veth to be made. Without an index the kernel picks one."""

    name: str
    mac: bytes
    index: int = 0
    group: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table."""

    network: IPv4Network
    gateway: IPv4Address | None
    link: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address whose link-layer address is known for good."""

    address: IPv4Address
    mac: bytes


class Links:
    """The links of the namespace of the thread that makes it; OSError in the kernel's words."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(_ROUTE)
        self._netlink.filter_dumps()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._netlink.close()

    def all(self) -> list[Link]:
        return [_link(payload) for payload in self._dump(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0))]

    def find(self, name: str) -> Link | None:
        request = _LINK.pack(0, 0, 0, 0, 0) + text_attribute(3, name)
        try:
            return _link(self._netlink.get(Message(_GET_LINK, 0, request)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def make_veth(self, near: End, far: End, far_netns: int, mtu: int) -> None:
        """Make a pair, both ends down; `far_netns` is a descriptor of the far end's namespace."""

        def end(which: End) -> bytes:
            texts = text_attribute(3, which.name) + attribute(1, which.mac) + attribute(4, struct.pack("=I", mtu))
            texts += attribute(27, struct.pack("=I", which.group))
            return _LINK.pack(0, 0, which.index, 0, 0) + texts

        peer = end(far) + attribute(28, struct.pack("=I", far_netns))
        info = nested(18, text_attribute(1, "veth"), nested(2, attribute(1, peer)))
        self._netlink.change([Message(_NEW_LINK, ACK | CREATE | EXCLUSIVE, end(near) + info)])

    def delete(self, index: int) -> None:
        """Delete a link, and with it the other end of a veth. Idempotent."""
        try:
            self._netlink.change([Message(_DELETE_LINK, ACK, _LINK.pack(0, 0, index, 0, 0))])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def delete_group(self, group: int) -> None:
        """Delete all links of a group at once, which costs no more than deleting one. Idempotent."""
        request = _LINK.pack(0, 0, 0, 0, 0) + attribute(27, struct.pack("=I", group))
        try:
            self._netlink.change([Message(_DELETE_LINK, ACK, request)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def configure(
        self,
        index: int,
        *,
        address: IPv4Interface | None = None,
        neighbour: Neighbour | None = None,
        gateway: IPv4Address | None = None,
    ) -> None:
        """Bring a link up and give it what is named; what is already so stays so."""
        messages = [Message(_SET_LINK, ACK, _LINK.pack(0, 0, index, _UP, _UP))]
        if address is not None:
            packed = address.ip.packed
            header = _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index)
            messages.append(
                Message(_NEW_ADDRESS, ACK | CREATE | REPLACE, header + attribute(2, packed) + attribute(1, packed))
            )
        if neighbour is not None:
            header = _NEIGHBOUR.pack(socket.AF_INET, index, _PERMANENT, 0, 0)
            body = attribute(1, neighbour.address.packed) + attribute(2, neighbour.mac)
            messages.append(Message(_NEW_NEIGHBOUR, ACK | CREATE | REPLACE, header + body))
        if gateway is not None:
            header = _ROUTE_HEADER.pack(socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _STATIC, 0, _UNICAST, 0)
            body = attribute(5, gateway.packed) + attribute(4, struct.pack("=I", index))
            messages.append(Message(_NEW_ROUTE, ACK | CREATE | REPLACE, header + body))
        self._netlink.change(messages)

    def set_down(self, name: str) -> None:
        """Take a link down; one that is gone is down."""
        link = self.find(name)
        if link is not None:
            self._netlink.change([Message(_SET_LINK, ACK, _LINK.pack(0, 0, link.index, 0, _UP))])

    def remove_addresses(self, index: int) -> None:
        """Remove every address of a link, which takes its routes and neighbours along."""
        messages = [
            Message(
                _DELETE_ADDRESS,
                ACK,
                _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index) + attribute(2, address.ip.packed),
            )
            for address in self.addresses(index)
        ]
        if messages:
            self._netlink.change(messages)

    def addresses(self, index: int = 0) -> list[IPv4Interface]:
        """Return the addresses of one link, or of all."""
        found: list[IPv4Interface] = []
        for payload in self._dump(_GET_ADDRESS, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, index)):
            values = attributes(payload[_ADDRESS.size :])
            packed = values.get(2) or values.get(1)
            if packed is not None:
                found.append(IPv4Interface((IPv4Address(packed), payload[1])))
        return found

    def routes(self) -> list[Route]:
        """Return the main table."""
        request = _ROUTE_HEADER.pack(socket.AF_INET, 0, 0, 0, _MAIN_TABLE, 0, 0, 0, 0)
        found: list[Route] = []
        for payload in self._dump(_GET_ROUTE, request + attribute(15, struct.pack("=I", _MAIN_TABLE))):
            values = attributes(payload[_ROUTE_HEADER.size :])
            network = IPv4Network((values.get(1, bytes(4)), payload[1]))
            gateway = IPv4Address(values[5]) if 5 in values else None
            found.append(Route(network, gateway, _number(values.get(4, b""))))
        return found

    def neighbours(self, index: int) -> list[Neighbour]:
        """Return the permanent neighbours of a link."""
        request = _NEIGHBOUR.pack(socket.AF_INET, 0, 0, 0, 0) + attribute(8, struct.pack("=I", index))
        found: list[Neighbour] = []
        for payload in self._dump(_GET_NEIGHBOUR, request):
            _, link, state, _, _ = _NEIGHBOUR.unpack_from(payload)
            values = attributes(payload[_NEIGHBOUR.size :])
            if link == index and state & _PERMANENT:
                found.append(Neighbour(IPv4Address(values[1]), values.get(2, b"")))
        return found

    def _dump(self, kind: int, request: bytes) -> list[bytes]:
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return self._netlink.dump(Message(kind, 0, request))
            except InterruptedError:
                continue
        raise OSError(errno.EINTR, "the namespace changes faster than it can be read")


def read_counters(table: Path, prefix: str) -> dict[str, tuple[int, int]]:
    """Read from a `net/dev` of /proc the bytes received and sent by links whose name begins so."""
    found: dict[str, tuple[int, int]] = {}
    for line in table.read_text().splitlines():
        name, separator, numbers = line.partition(":")
        name = name.strip()
        if separator and name.startswith(prefix):
            fields = numbers.split()
            found[name] = (int(fields[0]), int(fields[8]))
    return found


def _link(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    values = attributes(payload[_LINK.size :])
    return Link(
        index=index,
        name=values[3].rstrip(b"\0").decode(),
        up=bool(flags & _UP),
        mtu=_number(values[4]),
        mac=values.get(1, b""),
    )


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)
