"""What the kernel tells of packets that it refused: the first bytes of each, on a netlink socket of one group.

Reading never blocks, and what does not fit is lost: the kernel waits for nobody.
"""

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from netpolicy.netlink import attribute, attributes
from netpolicy.router_side import LOG_BYTES, LOG_GROUP

_NETFILTER: Final = 12
_LOG: Final = 4 << 8
_CONFIG: Final = _LOG | 1
_PACKET: Final = _LOG
_ERROR: Final = 2
_REQUEST_ACK: Final = 0x5
_HEADER: Final = struct.Struct("=IHHII")
_COMMAND, _MODE, _QUEUE = 1, 2, 5
_BIND: Final = 1
_COPY_PACKET: Final = 2
_PAYLOAD, _PREFIX = 9, 10
_RECEIVE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
_READS: Final = 64
_TIMEOUT_SECONDS: Final = 5
_TCP, _UDP, _ICMP = 6, 17, 1
_PROTOCOLS: Final = {_TCP: "tcp", _UDP: "udp", _ICMP: "icmp"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A packet that was refused, as its own first bytes say."""

    source: str
    address: str
    protocol: str
    port: int | None
    prefix: str


class RefusalLog:
    """The group's socket, in the network namespace of the thread that makes it. OSError where somebody has it."""

    def __init__(self, group: int = LOG_GROUP) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            self._socket.settimeout(_TIMEOUT_SECONDS)
            self._configure(group, attribute(_COMMAND, bytes((_BIND,))))
            self._configure(group, attribute(_MODE, struct.pack(">IBx", LOG_BYTES, _COPY_PACKET)))
            # Each is told at once: whoever was refused may ask why in the next millisecond. The table bounds how many.
            self._configure(group, attribute(_QUEUE, struct.pack(">I", 1)))
            self._socket.setblocking(False)  # noqa: FBT003 - its only parameter
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> list[Refused]:
        """Return what has come; some may be left."""
        found: list[Refused] = []
        for _ in range(_READS):
            try:
                found.extend(_packets(self._socket.recv(_READ_BYTES)))
            except BlockingIOError:
                break
            except OSError:
                continue  # what did not fit is lost
        return found

    def _configure(self, group: int, option: bytes) -> None:
        payload = struct.pack(">BBH", socket.AF_UNSPEC, 0, group) + option
        head = _HEADER.pack(_HEADER.size + len(payload), _CONFIG, _REQUEST_ACK, 1, 0)
        self._socket.send(head + payload)
        while True:
            data = self._socket.recv(_READ_BYTES)
            _, kind, *_ = _HEADER.unpack_from(data)
            if kind == _ERROR:
                number = -int.from_bytes(data[_HEADER.size : _HEADER.size + 4], sys.byteorder, signed=True)
                if number:
                    raise OSError(number, f"the log group {group} cannot be had")
                return


def _packets(data: bytes) -> Iterator[Refused]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        if kind == _PACKET:
            with contextlib.suppress(ValueError, struct.error, IndexError):
                yield _refused(data[_HEADER.size + 4 : length])
        data = data[(length + 3) & ~3 :]


def _refused(message: bytes) -> Refused:
    """Read one packet's headers; ValueError, IndexError, struct.error for what is none of IPv4."""
    parts = attributes(message)
    packet = parts.get(_PAYLOAD, b"")
    if packet[0] >> 4 != 4:
        raise ValueError("not IPv4")
    size = (packet[0] & 0xF) * 4
    protocol = packet[9]
    later = struct.unpack_from(">H", packet, 6)[0] & 0x1FFF
    port = None
    if protocol in {_TCP, _UDP} and not later:
        (port,) = struct.unpack_from(">H", packet, size + 2)
    return Refused(
        source=str(IPv4Address(packet[12:16])),
        address=str(IPv4Address(packet[16:20])),
        protocol=_PROTOCOLS.get(protocol, str(protocol)),
        port=port,
        prefix=parts.get(_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace"),
    )
