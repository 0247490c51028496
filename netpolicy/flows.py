"""Connections as the kernel tracks them: listed by slot, ended one by one or all of a slot's at once.

`Flows` acts on the network namespace of the thread that made it, and is used by one thread at a time.
"""

import errno
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from netpolicy.netlink import ACK, Message, NetlinkSocket, attribute, attributes, nested
from netpolicy.router_side import NODE_MARK, SLOT_MASK, TUNNEL_MARK, slot_mark

_NETFILTER = 12
_SET, _GET, _DELETE = (1 << 8 | number for number in (0, 1, 2))
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_STATE, _MARK, _ID, _MARK_MASK = 1, 2, 3, 4, 8, 12, 21
_TUPLE_ADDRESSES, _TUPLE_PROTOCOL = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_HEADER = struct.pack(">BBH", 2, 0, 0)
_TCP = 6
_ENDING = 6
"""From this TCP state on, nothing is carried any more."""
_DESTINATION_CHANGED = 1 << 5
_ATTEMPTS = 5
_AT_ONCE = 100


class FlowsError(Exception):
    """Connections could not be listed or ended; in the kernel's words."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection that a sandbox began."""

    protocol: int
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    mark: int
    redirected: bool
    """It goes to a program in the router namespace."""
    alive: bool
    tuple_bytes: bytes
    identity: bytes


class Flows:
    """What connection tracking of one namespace knows, on one socket that lives as long as it works."""

    def __init__(self, connect: Callable[[], NetlinkSocket] = lambda: NetlinkSocket(_NETFILTER)) -> None:
        self._connect = connect
        self._socket: NetlinkSocket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def of_slot(self, index: int) -> list[Flow]:
        """Return the connections of a slot that its sandbox began: those that a policy decides about."""
        wanted, mask = slot_mark(index), SLOT_MASK | NODE_MARK | TUNNEL_MARK
        payload = _HEADER + _mark(wanted, mask)
        for _ in range(_ATTEMPTS):
            try:
                answers = self._connected().dump(Message(_GET, 0, payload))
            except InterruptedError:
                continue
            except OSError as error:
                self.close()
                raise FlowsError(f"connections cannot be listed: {error}") from error
            found = [_flow(answer[4:]) for answer in answers]
            # An old kernel that knows no filter says everything.
            return [flow for flow in found if flow is not None and flow.mark & mask == wanted]
        raise FlowsError(f"connections come and go faster than they can be listed: {errno.EINTR}")

    def end(self, flows: Iterable[Flow]) -> None:
        """End connections: no packet of either side belongs to one any more. Those that are gone are gone."""
        self._each(_DELETE, flows, b"", "ended")

    def mark(self, flows: Iterable[Flow], mark: int) -> None:
        """Let connections bear another mark. Those that are gone are gone."""
        self._each(_SET, flows, attribute(_MARK, struct.pack(">I", mark)), "marked")

    def _each(self, kind: int, flows: Iterable[Flow], what: bytes, done: str) -> None:
        waiting = list(flows)
        for place in range(0, len(waiting), _AT_ONCE):
            messages = [
                Message(kind, ACK, _HEADER + nested(_ORIGINAL, flow.tuple_bytes) + attribute(_ID, flow.identity) + what)
                for flow in waiting[place : place + _AT_ONCE]
            ]
            try:
                self._connected().change(messages)
            except FileNotFoundError:
                # Each message stands for itself: the others have been done.
                self.close()
            except OSError as error:
                self.close()
                raise FlowsError(f"connections cannot be {done}: {error}") from error

    def forget(self, index: int, *, of_the_node: bool = False) -> None:
        """End every connection that a slot's sandbox began.

        With `of_the_node`, also those that the node or a tunnel began.
        """
        mask = SLOT_MASK if of_the_node else SLOT_MASK | NODE_MARK | TUNNEL_MARK
        try:
            self._connected().change([Message(_DELETE, ACK, _HEADER + _mark(slot_mark(index), mask))])
        except OSError as error:
            self.close()
            raise FlowsError(f"connections of slot {index} cannot be ended: {error}") from error

    def _connected(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = self._connect()
        return self._socket


def _mark(mark: int, mask: int) -> bytes:
    return attribute(_MARK, struct.pack(">I", mark)) + attribute(_MARK_MASK, struct.pack(">I", mask))


def _flow(packed: bytes) -> Flow | None:
    parts = attributes(packed)
    original = parts.get(_ORIGINAL, b"")
    sides = attributes(original)
    addresses, protocol = attributes(sides.get(_TUPLE_ADDRESSES, b"")), attributes(sides.get(_TUPLE_PROTOCOL, b""))
    try:
        return Flow(
            protocol=protocol[_NUMBER][0],
            source=IPv4Address(addresses[_SOURCE]),
            source_port=int.from_bytes(protocol.get(_SOURCE_PORT, b""), "big"),
            destination=IPv4Address(addresses[_DESTINATION]),
            destination_port=int.from_bytes(protocol.get(_DESTINATION_PORT, b""), "big"),
            mark=int.from_bytes(parts[_MARK], "big"),
            redirected=bool(int.from_bytes(parts[_STATUS], "big") & _DESTINATION_CHANGED),
            alive=_is_alive(protocol[_NUMBER][0], parts.get(_PROTOCOL_STATE, b"")),
            tuple_bytes=original,
            identity=parts[_ID],
        )
    except KeyError:  # of another family, or ended while it was listed
        return None


def _is_alive(protocol: int, state: bytes) -> bool:
    if protocol != _TCP:
        return True
    return attributes(attributes(state).get(1, b"")).get(1, b"\0")[0] < _ENDING
