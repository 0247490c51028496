"""Policy to nftables: two static tables and the elements that a sandbox has in them. Pure.

Tables never change while a node runs; only elements of flat sets keyed by interface do. That keeps a change at some
tens of microseconds however many sandboxes there are, and each change is one transaction.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from netpolicy.policy import DENIED_TCP_PORTS, PROTOCOLS, Mode, Policy, denied_networks

ROUTER_TABLE = "sandlot"
UPLINK = "uplink"
SLOT_PREFIX = "sbx"

SOURCES = "sources"
OPEN = "open_if"
MARKS = "marks"
NODE_ADDRESSES = "node_addresses"

SLOT_MASK = 0xFFFF0000
"""The half of a connection's mark that names its slot."""
NODE_MARK = 0x8000
"""Set where the node began the connection, which no egress policy ends. The bits below are kept for policies."""

_CONNECTION_RATE = "500/second burst 2000 packets"
_CONNECTIONS = 8192


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set, or of a map when it has data, as the kernel wants it."""

    set_name: str
    key: bytes
    data: bytes | None = None
    last: bytes | None = None
    """Of a set of intervals: the last key that the element stands for."""


@dataclass(frozen=True, slots=True)
class TablePart:
    """What another module has in a table."""

    sets: str = ""
    chains: str = ""
    forward: str = ""
    """Rules of the chain `forward`, before any that refuses."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction does. Removing what is not there and adding what is are no errors."""

    remove: tuple[Element, ...] = ()
    add: tuple[Element, ...] = ()


def slot_mark(index: int) -> int:
    """Return the mark of a slot's connections, never zero."""
    return (index + 1) << 16


def slot_elements(index: int, interface: str, address: IPv4Address) -> tuple[Element, ...]:
    """What a slot has for as long as it exists, whatever its policy."""
    key = _interface_key(interface)
    return (
        Element(SOURCES, key + address.packed),
        Element(MARKS, key, slot_mark(index).to_bytes(4, sys.byteorder)),
    )


def policy_change(interface: str, policy: Policy) -> Change:
    """Turn a slot to a policy, from whatever it had before."""
    element = Element(OPEN, _interface_key(interface))
    return Change(add=(element,)) if policy.mode is Mode.OPEN else Change(remove=(element,))


def node_address_element(address: IPv4Address) -> Element:
    return Element(NODE_ADDRESSES, address.packed)


def router_table(
    *,
    slots: Iterable[tuple[int, str, IPv4Address]] = (),
    open_interfaces: Iterable[str] = (),
    node_addresses: Iterable[IPv4Address] = (),
    extra_denied: Iterable[IPv4Network] = (),
    tunnels: TablePart = TablePart(),
) -> str:
    """Return the whole table of a router namespace, replacing what is there in one transaction.

    `sbx*` are the sandboxes, `uplink` leads to the host. A sandbox's packet is judged on its own each time, never by
    the connection that it claims to belong to, so a policy that closes acts on running connections at once.
    """
    sources = [f'"{interface}" . {address}' for _, interface, address in slots]
    marks = [f'"{interface}" : {slot_mark(index):#010x}' for index, interface, _ in slots]
    opened = [f'"{interface}"' for interface in open_interfaces]
    denied = [str(network) for network in denied_networks(extra_denied)]
    sandboxes = f'"{SLOT_PREFIX}*"'
    return f"""
table inet {ROUTER_TABLE} {{}}
delete table inet {ROUTER_TABLE}
table inet {ROUTER_TABLE} {{
  set {SOURCES} {{ type ifname . ipv4_addr; {_elements(sources)} }}
  map {MARKS} {{ type ifname : mark; {_elements(marks)} }}
  set {OPEN} {{ type ifname; {_elements(opened)} }}
  set {NODE_ADDRESSES} {{ type ipv4_addr; {_elements(str(address) for address in node_addresses)} }}
  set denied {{ type ipv4_addr; flags interval; {_elements(denied)} }}
  set connections {{ type ifname; size 65535; flags dynamic; }}
  set connection_rate {{ type ifname; size 65535; flags dynamic,timeout; timeout 1m; }}
{tunnels.sets}
  chain first {{
    type filter hook prerouting priority raw; policy drop;
    iifname "lo" accept
    meta nfproto != ipv4 drop
    iifname "{UPLINK}" accept
    iifname . ip saddr @{SOURCES} accept
  }}

  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    iifname {sandboxes} ct state established ct direction reply accept
    iifname {sandboxes} goto refuse
  }}

  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
{tunnels.forward}
    iifname "{UPLINK}" oifname @{OPEN} ct state established,related accept
    iifname != {sandboxes} drop
    oifname != "{UPLINK}" goto refuse
    ip daddr @denied goto refuse
    ip daddr @{NODE_ADDRESSES} goto refuse
    meta l4proto != {{ {", ".join(sorted(PROTOCOLS))} }} goto refuse
    tcp dport {{ {", ".join(str(port) for port in sorted(DENIED_TCP_PORTS))} }} goto refuse
    iifname != @{OPEN} goto refuse
    ct state invalid goto refuse
    ct state new jump limits
    ct mark set iifname map @{MARKS}
    accept
  }}

  chain limits {{
    update @connection_rate {{ iifname limit rate over {_CONNECTION_RATE} }} drop
    add @connections {{ iifname ct count over {_CONNECTIONS} }} goto refuse
  }}

  chain refuse {{
    tcp flags & (syn | ack) != syn reject with tcp reset
    meta l4proto {{ tcp, udp }} reject with icmp admin-prohibited
    drop
  }}

  chain output {{
    type filter hook output priority filter; policy accept;
    oifname != {sandboxes} accept
    ct mark set oifname map @{MARKS}
    ct mark set ct mark or {NODE_MARK:#x}
  }}

  chain nat {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {sandboxes} oifname "{UPLINK}" masquerade
  }}
{tunnels.chains}
}}
"""  # noqa: S608 - nftables, not SQL, and every part of it is ours


def host_table(
    *,
    name: str,
    uplink: str,
    address: IPv4Address,
    extra_denied: Iterable[IPv4Network] = (),
    tunnels: TablePart = TablePart(),
) -> str:
    """Return the table beside the host's own rules, replacing what is there in one transaction.

    It repeats what the router's table promises, for the day that one is wrong: nothing that comes from the uplink
    reaches an address of the host or a private network, unless the other side began.
    """
    denied = [str(network) for network in denied_networks(extra_denied)]
    return f"""
table inet {name} {{}}
delete table inet {name}
table inet {name} {{
  set denied {{ type ipv4_addr; flags interval; {_elements(denied)} }}
{tunnels.sets}
  chain first {{
    type filter hook prerouting priority mangle; policy accept;
    iifname != "{uplink}" accept
    meta nfproto != ipv4 drop
    ip saddr != {address} drop
    ct direction reply accept
    fib daddr type != unicast drop
    ip daddr @denied drop
  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{uplink}" ct direction original drop
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    oifname "{uplink}" ct state established,related accept
{tunnels.forward}
    oifname "{uplink}" drop
  }}

  chain nat {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {address} oifname != "{uplink}" masquerade
  }}
{tunnels.chains}
}}
"""


def _elements(texts: Iterable[str]) -> str:
    joined = ", ".join(texts)
    return f"elements = {{ {joined} }}" if joined else ""


def _interface_key(interface: str) -> bytes:
    return interface.encode().ljust(16, b"\0")
