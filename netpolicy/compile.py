"""The two static tables, as text for `nft`. Pure.

Tables never change while a node runs; only elements of flat sets keyed by interface do. That keeps a change at some
tens of microseconds however many sandboxes there are, and each change is one transaction.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from netpolicy.platform import DENIED_TCP_PORTS, PLATFORM, PROTOCOLS, Platform
from netpolicy.router_side import (
    HTTP_PORT,
    LOG_BYTES,
    LOG_GROUP,
    NODE_MARK,
    RESOLVER_PORT,
    SLOT_PREFIX,
    TLS_PORT,
    LogPrefix,
)
from netpolicy.rules import DNS_PORTS

ROUTER_TABLE = "sandlot"
UPLINK = "uplink"

_LOG_RATE = "20/second burst 100 packets"
_WHERE = "ifname . inet_proto . ipv4_addr . inet_service"
_PACKET = "iifname . meta l4proto . ip daddr . th dport"
_BY_POLICY = "meta mark . meta l4proto . ip daddr . th dport"
"""`meta mark` is the policy in force, looked up first: an older one's elements are never met."""
_ANSWER = "oifname . meta l4proto . ip saddr . th sport"
_ANSWER_BY_POLICY = "meta mark . meta l4proto . ip saddr . th sport"
_POLICY = "mark . inet_proto . ipv4_addr . inet_service"
_SANDBOXES = f'"{SLOT_PREFIX}*"'


@dataclass(frozen=True, slots=True)
class TablePart:
    """What another module has in a table."""

    sets: str = ""
    """With all their elements: those of an earlier table are forgotten."""
    chains: str = ""
    forward: str = ""
    """Rules of the chain `forward`, before any that refuses."""


def router_table(platform: Platform = PLATFORM, *, tunnels: TablePart = TablePart()) -> str:
    """Return the whole table of a router namespace, replacing the rules of the one that is there in one transaction.

    `sbx*` are the sandboxes, `uplink` leads to the host. Sets that are there keep their elements, so nobody's
    connection notices. The first packet of a connection, and the first one after a policy has changed, is judged by
    the policy; the others pass by the mark that says which policy has allowed them.
    """
    replaced = _platform_sets(platform) + tunnels.sets
    flushes = "\n".join(f"flush {kind} inet {ROUTER_TABLE} {name}" for kind, name in _NAMES.findall(replaced))
    return f"""
table inet {ROUTER_TABLE} {{
{_ELEMENTS.sub("", replaced)}
}}
flush table inet {ROUTER_TABLE}
{flushes}
table inet {ROUTER_TABLE} {{
{replaced}
{_SETS}
{_ways_in()}
{_forward(tunnels.forward)}
{_verdicts()}
{_ways_out()}
{tunnels.chains}
}}
"""


def drop_table(name: str = ROUTER_TABLE) -> str:
    """Return what removes a table, whether it is there or not."""
    return f"table inet {name} {{}}\ndelete table inet {name}\n"


def _platform_sets(platform: Platform) -> str:
    addresses = _elements(str(address) for address in sorted(platform.node_addresses))
    return f"""
  set denied {{ type ipv4_addr; flags interval; {_elements(str(network) for network in platform.denied)} }}
  set node_addresses {{ type ipv4_addr; {addresses} }}
"""


_ELEMENTS = re.compile(r"elements = \{[^}]*\}")
_NAMES = re.compile(r"\b(set|map) (\w+) \{")
_SETS = f"""
  set sources {{ type ifname . ipv4_addr; }}
  map marks {{ type ifname : mark; }}
  set live {{ type ifname . mark; }}
  set open_if {{ type ifname; }}
  set named_if {{ type ifname; }}
  set judged_if {{ type ifname; }}
  set allow {{ type {_POLICY}; flags interval; }}
  set deny {{ type {_POLICY}; flags interval; }}
  set learned {{ type {_WHERE}; flags timeout; }}
  set learned_ranges {{ type {_WHERE}; flags interval,timeout; }}
  set new_rates {{ type ifname; size 65535; flags dynamic; limit rate over 1/second; }}
  set counts {{ type ifname; size 65535; flags dynamic; ct count over 1; }}
  set up_rates {{ type ifname; size 65535; flags dynamic; limit rate over 1 bytes/second; }}
  set down_rates {{ type ifname; size 65535; flags dynamic; limit rate over 1 bytes/second; }}
  set log_rates {{ type ifname; size 65535; flags dynamic,timeout; timeout 1m; }}
"""


def _ways_in() -> str:
    """What every packet of a sandbox meets first, and what of it may reach the router itself."""
    services = f"{{ {RESOLVER_PORT}, {HTTP_PORT}, {TLS_PORT} }}"
    return f"""
  chain first {{
    type filter hook prerouting priority raw; policy drop;
    iifname "lo" accept
    meta nfproto != ipv4 drop
    iifname "{UPLINK}" accept
    iifname . ip saddr @sources accept
  }}

  chain up {{
    type filter hook prerouting priority mangle; policy accept;
    iifname {_SANDBOXES} ct direction original iifname @up_rates drop
  }}

  chain names {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname != @named_if accept
    meta l4proto {{ tcp, udp }} th dport {DNS_PORTS[0]} redirect to :{RESOLVER_PORT}
    ip daddr @denied accept
    ip daddr @node_addresses accept
    meta mark set iifname map @marks
    {_BY_POLICY} @deny accept
    iifname != @judged_if {_BY_POLICY} @allow accept
    tcp dport 80 redirect to :{HTTP_PORT}
    tcp dport 443 redirect to :{TLS_PORT}
  }}

  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    iifname {{ {_SANDBOXES}, "{UPLINK}" }} ct state established,related ct direction reply accept
    iifname != {_SANDBOXES} drop
    iifname @named_if goto service
    iifname @open_if ct state established goto service
    goto refuse
  }}

  chain service {{
    ct status & dnat == 0 goto refuse
    meta l4proto {{ tcp, udp }} th dport {services} goto permit
    goto refuse
  }}
"""


def _forward(tunnels: str) -> str:
    """What passes between sandboxes and the uplink. Between sandboxes, and from the uplink unasked, nothing does.

    An answer is judged like what it answers: whichever side speaks first after a
    policy has changed, what that forbids is dead. What the platform denies has had no connection before either, or it
    is ended when that changes.
    """
    return f"""
  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
{tunnels}
    iifname "{UPLINK}" oifname {_SANDBOXES} ct state established,related ct direction reply goto answers
    iifname != {_SANDBOXES} drop
    oifname != "{UPLINK}" goto refuse
    ct state invalid goto refuse
    ip daddr @denied goto refuse
    ip daddr @node_addresses goto refuse
    meta l4proto != {{ {", ".join(sorted(PROTOCOLS))} }} goto refuse
    tcp dport {{ {", ".join(str(port) for port in sorted(DENIED_TCP_PORTS))} }} goto refuse
    iifname . ct mark @live accept
    meta mark set iifname map @marks
    {_BY_POLICY} @deny goto refuse
    iifname @named_if meta l4proto {{ tcp, udp }} th dport {{ {", ".join(map(str, DNS_PORTS))} }} goto refuse
    {_PACKET} @learned goto permit
    {_PACKET} @learned_ranges goto permit
    iifname @judged_if tcp dport {{ 80, 443 }} goto refuse
    iifname @judged_if udp dport 443 goto refuse
    {_BY_POLICY} @allow goto permit
    iifname @open_if goto permit
    goto refuse
  }}

  chain answers {{
    oifname . ct mark @live accept
    ct state related drop
    meta mark set oifname map @marks
    {_ANSWER_BY_POLICY} @deny drop
    oifname @named_if meta l4proto {{ tcp, udp }} th sport {{ {", ".join(map(str, DNS_PORTS))} }} drop
    {_ANSWER} @learned goto go_on
    {_ANSWER} @learned_ranges goto go_on
    oifname @judged_if tcp sport {{ 80, 443 }} drop
    oifname @judged_if udp sport 443 drop
    {_ANSWER_BY_POLICY} @allow goto go_on
    oifname @open_if goto go_on
    drop
  }}
"""


def _verdicts() -> str:
    """Permit stamps a connection with the policy that allowed it. Refusals are told to whoever listens, then said."""

    def told(prefix: LogPrefix) -> str:
        return (
            f"update @log_rates {{ iifname limit rate {_LOG_RATE} }} "
            f'log prefix "{prefix}" group {LOG_GROUP} snaplen {LOG_BYTES}'
        )

    return f"""
  chain permit {{
    ct state new iifname @new_rates goto refuse_rate
    ct state new iifname @counts goto refuse_count
    ct mark set iifname map @marks
    accept
  }}

  chain go_on {{
    ct mark set oifname map @marks
    accept
  }}

  chain refuse {{
    {told(LogPrefix.POLICY)}
    goto turn_away
  }}

  chain refuse_rate {{
    {told(LogPrefix.RATE)}
    goto turn_away
  }}

  chain refuse_count {{
    {told(LogPrefix.CONNECTIONS)}
    goto turn_away
  }}

  chain turn_away {{
    tcp flags & (syn | ack) != syn reject with tcp reset
    meta l4proto {{ tcp, udp }} reject with icmp admin-prohibited
    drop
  }}
"""


def _ways_out() -> str:
    """What leaves: by the programs here to sandboxes and to the world, and translated to the router's own address."""
    return f"""
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{UPLINK}" ct direction original ip daddr @denied reject
    oifname "{UPLINK}" ct direction original ip daddr @node_addresses reject
    oifname != {_SANDBOXES} accept
    ct direction != original accept
    ct mark set oifname map @marks
    ct mark set ct mark or {NODE_MARK:#x}
  }}

  chain down {{
    type filter hook postrouting priority mangle; policy accept;
    oifname {_SANDBOXES} ct direction reply oifname @down_rates drop
  }}

  chain nat {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {_SANDBOXES} oifname "{UPLINK}" masquerade
  }}
"""


def host_table(
    *,
    name: str,
    uplink: str,
    address: IPv4Address,
    platform: Platform = PLATFORM,
    tunnels: TablePart = TablePart(),
) -> str:
    """Return the table beside the host's own rules, replacing what is there in one transaction.

    It repeats what the router's table promises, for the day that one is wrong: nothing that comes from the uplink
    reaches an address of the host or a private network, unless the other side began.
    """
    denied = _elements(str(network) for network in platform.denied)
    return f"""
table inet {name} {{}}
delete table inet {name}
table inet {name} {{
  set denied {{ type ipv4_addr; flags interval; {denied} }}
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
