"""Raw tunnels to nftables: the parts of both tables that carry them, and the elements that one tunnel has. Pure.

A packet from outside meets the host's table, which sends a tunnel's public port to the router namespace, and there the
router's, which sends it on to the sandbox. Source addresses stay what they are. Every packet of such a connection is
looked up by the connection's mark, so a tunnel that is closed carries nothing more from that moment on, and what it
carried is counted.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Final, Literal

from netpolicy.compile import UPLINK, TablePart
from netpolicy.elements import Element
from netpolicy.router_side import NODE_MARK, SLOT_PREFIX, slot_mark

Protocol = Literal["tcp", "udp"]

HOST_TUNNELS: Final = "tunnels"
"""The host's set of what it sends on."""
DESTINATIONS: Final = "tunnel_destinations"
MARKS: Final = "tunnel_marks"
NARROW: Final = "tunnel_narrow"
SOURCES: Final = "tunnel_sources"
IN: Final = "tunnels_in"
OUT: Final = "tunnels_out"

LOWEST_PORT: Final = 1024
HIGHEST_PORT: Final = 0x7FFF
"""A public port is also the low half of its connections' marks, below `NODE_MARK`; Linux gives itself higher ones."""

_KEY_OF_PACKET: Final = "meta l4proto . th dport"
_NUMBERS: Final = {"tcp": 6, "udp": 17}
_CONNECTION_RATE: Final = "2000/second burst 4000 packets"
_CONNECTIONS: Final = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTunnel:
    """One tunnel that the kernel carries."""

    protocol: Protocol
    public_port: int
    slot: int
    address: IPv4Address
    """The sandbox's own."""
    port: int
    sources: tuple[IPv4Network, ...] = ()
    """Whence it may be used; empty: from everywhere."""

    @property
    def mark(self) -> int:
        """The mark of its connections: of its slot, begun by somebody else than the sandbox, and its own."""
        return slot_mark(self.slot) | NODE_MARK | self.public_port

    def allows(self, source: IPv4Address) -> bool:
        return not self.sources or any(source in network for network in self.sources)


def router_elements(tunnel: RawTunnel) -> tuple[Element, ...]:
    """What a tunnel has in the router's table."""
    key = _key(tunnel.protocol, tunnel.public_port)
    mark = tunnel.mark.to_bytes(4, sys.byteorder)
    destination = tunnel.address.packed + _port(tunnel.port)
    return (
        Element(IN, mark),
        Element(OUT, mark),
        *source_elements(tunnel),
        Element(MARKS, key, mark),
        Element(DESTINATIONS, key, destination),
    )


def source_elements(tunnel: RawTunnel) -> tuple[Element, ...]:
    """What of it says whence it may be used."""
    key = _key(tunnel.protocol, tunnel.public_port)
    sources = [
        Element(SOURCES, key + network[0].packed, last=key + network[-1].packed) for network in _collapsed(tunnel)
    ]
    return (*sources, Element(NARROW, key)) if sources else ()


def host_element(tunnel: RawTunnel) -> Element:
    """What a tunnel has in the host's table."""
    return Element(HOST_TUNNELS, _key(tunnel.protocol, tunnel.public_port))


def router_part(tunnels: Sequence[RawTunnel]) -> TablePart:
    """Return what the router's table has for tunnels, with these in it.

    What comes for one is turned towards its sandbox. Of such a connection everything may go in, and only replies out.
    """
    keys = [(_text(tunnel), tunnel) for tunnel in tunnels]
    marks = [f"{tunnel.mark:#010x}" for tunnel in tunnels]
    destinations = [f"{key} : {tunnel.address} . {tunnel.port}" for key, tunnel in keys]
    sources = [f"{key} . {network}" for key, tunnel in keys for network in _collapsed(tunnel)]
    sandboxes = f'"{SLOT_PREFIX}*"'
    return TablePart(
        sets=f"""
  map {DESTINATIONS} {{
    type inet_proto . inet_service : ipv4_addr . inet_service; size 65535; {_elements(destinations)}
  }}
  map {MARKS} {{
    type inet_proto . inet_service : mark; size 65535;
    {_elements(f"{key} : {mark}" for (key, _), mark in zip(keys, marks, strict=True))}
  }}
  set {NARROW} {{
    type inet_proto . inet_service; size 65535; {_elements(key for key, tunnel in keys if tunnel.sources)}
  }}
  set {SOURCES} {{ type inet_proto . inet_service . ipv4_addr; flags interval; {_elements(sources)} }}
  set {IN} {{ type mark; size 65535; counter; {_elements(marks)} }}
  set {OUT} {{ type mark; size 65535; counter; {_elements(marks)} }}
""",
        forward=f"""
    iifname "{UPLINK}" oifname {sandboxes} ct status dnat ct direction original ct mark @{IN} accept
    iifname "{UPLINK}" oifname {sandboxes} ct status dnat ct direction original drop
    iifname {sandboxes} oifname "{UPLINK}" ct status dnat ct direction reply ct mark @{OUT} accept
    iifname {sandboxes} oifname "{UPLINK}" ct status dnat ct direction reply drop
""",
        chains=f"""
  chain tunnels {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname != "{UPLINK}" accept
    {_KEY_OF_PACKET} @{NARROW} {_KEY_OF_PACKET} . ip saddr != @{SOURCES} drop
    ct mark set {_KEY_OF_PACKET} map @{MARKS}
    dnat ip to {_KEY_OF_PACKET} map @{DESTINATIONS}
  }}
""",
    )


def host_part(tunnels: Iterable[RawTunnel], *, uplink: str, router: IPv4Address) -> TablePart:
    """Return what the host's table has for tunnels, with these in it.

    What is meant for the host on a tunnel's port goes to the router, within limits. That holds for the host's own
    programs too; one that used a loopback address could not be answered there, so it comes from the uplink's own. The
    sets are all named `tunnel…`, and change while the table stands.
    """
    turned = f"fib daddr type local {_KEY_OF_PACKET} @{HOST_TUNNELS} dnat ip to {router}"
    return TablePart(
        sets=f"""
  set {HOST_TUNNELS} {{
    type inet_proto . inet_service; size 65535; {_elements(_text(tunnel) for tunnel in tunnels)}
  }}
  set tunnel_connections {{ type inet_proto . inet_service; size 65535; flags dynamic; }}
  set tunnel_rate {{ type inet_proto . inet_service; size 65535; flags dynamic,timeout; timeout 1m; }}
""",
        forward=f"""
    oifname "{uplink}" ct status dnat {_KEY_OF_PACKET} @{HOST_TUNNELS} goto tunnel_limits
""",
        chains=f"""
  chain tunnels_from_outside {{
    type nat hook prerouting priority -105; policy accept;
    iifname != "{uplink}" meta nfproto ipv4 {turned}
  }}

  chain tunnels_from_here {{
    type nat hook output priority -105; policy accept;
    meta nfproto ipv4 {turned}
  }}

  chain tunnels_from_loopback {{
    type nat hook postrouting priority 95; policy accept;
    oifname "{uplink}" ip saddr 127.0.0.0/8 masquerade
  }}

  chain tunnel_limits {{
    update @tunnel_rate {{ {_KEY_OF_PACKET} limit rate over {_CONNECTION_RATE} }} drop
    add @tunnel_connections {{ {_KEY_OF_PACKET} ct count over {_CONNECTIONS} }} drop
    accept
  }}
""",
    )


def _collapsed(tunnel: RawTunnel) -> list[IPv4Network]:
    """Return its sources without overlaps, which a set of intervals refuses."""
    return sorted(collapse_addresses(tunnel.sources))


def _key(protocol: Protocol, port: int) -> bytes:
    return bytes((_NUMBERS[protocol], 0, 0, 0)) + _port(port)


def _port(port: int) -> bytes:
    return port.to_bytes(2, "big") + b"\0\0"


def _text(tunnel: RawTunnel) -> str:
    return f"{tunnel.protocol} . {tunnel.public_port}"


def _elements(texts: Iterable[str]) -> str:
    joined = ", ".join(texts)
    return f"elements = {{ {joined} }}" if joined else ""
