"""Connections as the kernel tracks them: listed by their mark, ended one by one or all of a slot's at once.

`Flows` acts on the network namespace of the thread that made its socket, and is used by one thread at a time.
"""

import errno
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from netpolicy.netlink import ACK, Message, NetlinkSocket, attribute, attributes, nested
from netpolicy.regions import PROTOCOL_NUMBERS
from netpolicy.router_side import NODE_MARK, SLOT_MASK, TUNNEL_MARK, slot_mark

_NETFILTER: Final = 12
_SET, _GET, _DELETE = (1 << 8 | number for number in (0, 1, 2))
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_STATE, _MARK, _MARK_MASK = 1, 2, 3, 4, 8, 21
_ADDRESSES, _PROTOCOL = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT, _ICMP_ID, _ICMP_TYPE, _ICMP_CODE = 1, 2, 3, 4, 5, 6
_HEADER: Final = struct.pack(">BBH", 2, 0, 0)  # IPv4
_WHOLE: Final = 0xFFFFFFFF
_TCP, _ICMP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["icmp"]
_ENDING: Final = 6
"""From this TCP state on, nothing is carried any more."""
_ENDING_WORDS: Final = frozenset({b"LAST_ACK", b"TIME_WAIT", b"CLOSE", b"SYN_SENT2"})
_DESTINATION_CHANGED: Final = 1 << 5
_ATTEMPTS: Final = 5
_AT_ONCE: Final = 100

_TEXT: Final = Path("/proc/thread-self/net/nf_conntrack")
_COUNT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MOST_AS_TEXT: Final = 4000
"""By netlink the kernel takes a lock for each of the table's hash buckets, most of them empty: nine milliseconds for
the usual quarter of a million. As text it takes none, but tells of every connection, two microseconds for each."""
_LINE: Final = re.compile(
    rb"^ipv4 +2 \w+ +(\d+) \d+ (?:([A-Z_0-9]+) )?src=(\S+) dst=(\S+) (sport=\d+ dport=\d+|type=\d+ code=\d+ id=\d+) "
    rb".*?src=(\S+) dst=\S+ (?:sport=(\d+) )?.* mark=(\d+) ",
    re.MULTILINE,
)


class FlowsError(Exception):
    """Connections could not be listed or ended; in the kernel's words."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection, as it began. With ICMP the source's port is the identifier, the other one type and code."""

    protocol: int
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    mark: int = 0
    redirected: bool = False
    """Its destination was changed on its way: it goes to a program in the router namespace, or through a tunnel."""
    alive: bool = True


class Flows:
    """What connection tracking of one namespace knows, on one socket that lives as long as it works."""

    def __init__(
        self,
        connect: Callable[[], NetlinkSocket] = lambda: NetlinkSocket(_NETFILTER),
        *,
        most_as_text: int = _MOST_AS_TEXT,
    ) -> None:
        self._connect = connect
        self._most_as_text = most_as_text
        self._socket: NetlinkSocket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def of_slot(self, index: int) -> list[Flow]:
        """Return the connections of a slot that its sandbox began: those that a policy decides about.

        While others come and go one may be left out, so nothing may depend on every one being there.
        """
        return self.marked(slot_mark(index), SLOT_MASK | NODE_MARK | TUNNEL_MARK)

    def marked(self, mark: int, mask: int = _WHOLE) -> list[Flow]:
        """Return the connections of a mark."""
        found = self._as_text(mark, mask)
        return self._listed(mark, mask) if found is None else found

    def every(self, mark: int) -> list[Flow]:
        """Return the connections of a mark, without fail those that are there before and after."""
        return self._listed(mark, _WHOLE)

    def end(self, flows: Iterable[Flow]) -> None:
        """End connections: no packet of either side belongs to one any more. Those that are gone are gone."""
        self._each(_DELETE, ((_ORIGINAL, flow) for flow in flows), b"", "ended")

    def end_answered(self, flows: Iterable[Flow]) -> None:
        """End the connections whose answers look so."""
        self._each(_DELETE, ((_REPLY, flow) for flow in flows), b"", "ended")

    def mark(self, flows: Iterable[Flow], mark: int) -> None:
        """Let connections bear another mark. Those that are gone are gone."""
        what = attribute(_MARK, struct.pack(">I", mark))
        self._each(_SET, ((_ORIGINAL, flow) for flow in flows), what, "marked")

    def forget(self, index: int, *, of_the_node: bool = False) -> None:
        """End every connection that a slot's sandbox began.

        With `of_the_node`, also those that the node or a tunnel began.
        """
        mask = SLOT_MASK if of_the_node else SLOT_MASK | NODE_MARK | TUNNEL_MARK
        try:
            self._connected().change([Message(_DELETE, ACK, _HEADER + _marked(slot_mark(index), mask))])
        except OSError as error:
            self.close()
            raise FlowsError(f"connections of slot {index} cannot be ended: {error}") from error

    def _as_text(self, mark: int, mask: int) -> list[Flow] | None:
        """None: there are too many, or this kernel does not tell."""
        try:
            if int(_COUNT.read_bytes()) > self._most_as_text:
                return None
            text = _TEXT.read_bytes()
        except OSError:
            return None
        return [_of_text(line) for line in _LINE.finditer(text) if int(line[8]) & mask == mark]

    def _listed(self, mark: int, mask: int) -> list[Flow]:
        payload = _HEADER + _marked(mark, mask)
        for _ in range(_ATTEMPTS):
            try:
                answers = self._connected().dump(Message(_GET, 0, payload))
            except InterruptedError:
                continue
            except OSError as error:
                self.close()
                raise FlowsError(f"connections cannot be listed: {error}") from error
            found = [_of_answer(answer[4:]) for answer in answers]
            # An old kernel that knows no filter says everything.
            return [flow for flow in found if flow is not None and flow.mark & mask == mark]
        raise FlowsError(f"connections come and go faster than they can be listed: {errno.EINTR}")

    def _each(self, kind: int, flows: Iterable[tuple[int, Flow]], what: bytes, done: str) -> None:
        waiting = list(flows)
        for place in range(0, len(waiting), _AT_ONCE):
            messages = [
                Message(kind, ACK, _HEADER + _tuple(side, flow) + what)
                for side, flow in waiting[place : place + _AT_ONCE]
            ]
            try:
                self._connected().change(messages)
            except FileNotFoundError:
                # Each message stands for itself: the others have been done.
                self.close()
            except OSError as error:
                self.close()
                raise FlowsError(f"connections cannot be {done}: {error}") from error

    def _connected(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = self._connect()
        return self._socket


def answers_to(flow: Flow) -> Flow:
    """Return the other direction of a TCP or UDP connection."""
    return Flow(flow.protocol, flow.destination, flow.destination_port, flow.source, flow.source_port)


def _marked(mark: int, mask: int) -> bytes:
    return attribute(_MARK, struct.pack(">I", mark)) + attribute(_MARK_MASK, struct.pack(">I", mask))


def _tuple(side: int, flow: Flow) -> bytes:
    addresses = (attribute(_SOURCE, flow.source.packed), attribute(_DESTINATION, flow.destination.packed))
    return nested(side, nested(_ADDRESSES, *addresses), nested(_PROTOCOL, *_protocol(flow)))


def _protocol(flow: Flow) -> Iterator[bytes]:
    yield attribute(_NUMBER, bytes((flow.protocol,)))
    if flow.protocol == _ICMP:
        yield attribute(_ICMP_ID, struct.pack(">H", flow.source_port))
        yield attribute(_ICMP_TYPE, bytes((flow.destination_port >> 8,)))
        yield attribute(_ICMP_CODE, bytes((flow.destination_port & 0xFF,)))
    else:
        yield attribute(_SOURCE_PORT, struct.pack(">H", flow.source_port))
        yield attribute(_DESTINATION_PORT, struct.pack(">H", flow.destination_port))


def _of_answer(packed: bytes) -> Flow | None:
    parts = attributes(packed)
    sides = attributes(parts.get(_ORIGINAL, b""))
    addresses, protocol = attributes(sides.get(_ADDRESSES, b"")), attributes(sides.get(_PROTOCOL, b""))
    try:
        number = protocol[_NUMBER][0]
        ports = (_ICMP_ID, _ICMP_TYPE, _ICMP_CODE) if number == _ICMP else (_SOURCE_PORT, _DESTINATION_PORT)
        near, *far = (protocol[port] for port in ports)
        return Flow(
            protocol=number,
            source=IPv4Address(addresses[_SOURCE]),
            source_port=int.from_bytes(near, "big"),
            destination=IPv4Address(addresses[_DESTINATION]),
            destination_port=int.from_bytes(b"".join(far), "big"),
            mark=int.from_bytes(parts[_MARK], "big"),
            redirected=bool(int.from_bytes(parts[_STATUS], "big") & _DESTINATION_CHANGED),
            alive=number != _TCP or _tcp_state(parts.get(_PROTOCOL_STATE, b"")) < _ENDING,
        )
    except KeyError:  # of another family or protocol, or ended while it was listed
        return None


def _tcp_state(state: bytes) -> int:
    return attributes(attributes(state).get(1, b"")).get(1, b"\0")[0]


def _of_text(line: re.Match[bytes]) -> Flow:
    number, state, source, destination, ports, answering, answering_port, mark = line.groups()
    near, far = _text_ports(ports)
    return Flow(
        protocol=int(number),
        source=IPv4Address(source.decode()),
        source_port=near,
        destination=IPv4Address(destination.decode()),
        destination_port=far,
        mark=int(mark),
        redirected=answering != destination or (answering_port is not None and int(answering_port) != far),
        alive=state not in _ENDING_WORDS,
    )


def _text_ports(text: bytes) -> tuple[int, int]:
    numbers = [int(part.partition(b"=")[2]) for part in text.split()]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    kind, code, identifier = numbers
    return identifier, kind << 8 | code
