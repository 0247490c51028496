"""Connections as the kernel tracks them, one by one: listed by their mark, ended by their addresses.

`Connections` acts on the network namespace of the thread that made it, and is used by one thread at a time.
"""

import errno
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from netpolicy.netlink import ACK, Message, NetlinkSocket, attribute, attributes, nested

_NETFILTER: Final = 12
_GET, _DELETE = (1 << 8 | number for number in (1, 2))
_ORIGINAL, _REPLY, _MARK, _MARK_MASK = 1, 2, 8, 21
_ADDRESSES, _PROTOCOL = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_HEADER: Final = struct.pack(">BBH", 2, 0, 0)  # IPv4
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a TCP or UDP connection."""

    protocol: int
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int


class Connections:
    """What the connection tracking of one namespace knows. OSError in the kernel's words."""

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def marked(self, mark: int) -> list[Flow]:
        """Return how each connection of a mark began."""
        payload = _HEADER + attribute(_MARK, struct.pack(">I", mark))
        payload += attribute(_MARK_MASK, struct.pack(">I", 0xFFFFFFFF))
        for _ in range(_ATTEMPTS):
            try:
                answers = self._connected().dump(Message(_GET, 0, payload))
            except InterruptedError:
                continue
            # An old kernel that knows no filter says everything.
            tracked = [attributes(answer[4:]) for answer in answers]
            wanted = struct.pack(">I", mark)
            flows = [_flow(one.get(_ORIGINAL, b"")) for one in tracked if one.get(_MARK) == wanted]
            return [flow for flow in flows if flow is not None]
        raise OSError(errno.EINTR, "connections come and go faster than they can be listed")

    def end(self, flow: Flow, *, reply: bool = False) -> bool:
        """End the connection that began so, or, with `reply`, whose answers look so. False: there is none."""
        addresses = nested(
            _ADDRESSES, attribute(_SOURCE, flow.source.packed), attribute(_DESTINATION, flow.destination.packed)
        )
        protocol = nested(
            _PROTOCOL,
            attribute(_NUMBER, bytes((flow.protocol,))),
            attribute(_SOURCE_PORT, struct.pack(">H", flow.source_port)),
            attribute(_DESTINATION_PORT, struct.pack(">H", flow.destination_port)),
        )
        payload = _HEADER + nested(_REPLY if reply else _ORIGINAL, addresses, protocol)
        try:
            self._connected().change([Message(_DELETE, ACK, payload)])
        except FileNotFoundError:
            return False
        except OSError:
            self.close()
            raise
        return True

    def _connected(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(_NETFILTER)
        return self._socket


def answers_to(flow: Flow) -> Flow:
    """Return the other direction."""
    return Flow(flow.protocol, flow.destination, flow.destination_port, flow.source, flow.source_port)


def _flow(packed: bytes) -> Flow | None:
    parts = attributes(packed)
    addresses, protocol = attributes(parts.get(_ADDRESSES, b"")), attributes(parts.get(_PROTOCOL, b""))
    try:
        return Flow(
            protocol[_NUMBER][0],
            IPv4Address(addresses[_SOURCE]),
            int.from_bytes(protocol[_SOURCE_PORT], "big"),
            IPv4Address(addresses[_DESTINATION]),
            int.from_bytes(protocol[_DESTINATION_PORT], "big"),
        )
    except KeyError:  # of another protocol, or another family
        return None
