"""Connections as a kernel tracks them, listed in both ways that it has, in a namespace made for each test."""

import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

import pytest

from netpolicy.firewall import load_table
from netpolicy.flows import Flow, Flows, answers_to
from netpolicy.router_side import slot_mark
from network_world import World
from sandboxd.network.links import Links

HERE = "127.0.0.1"
MARK = slot_mark(3) | 5
TABLE = f"""
table inet marking {{
  chain before {{
    type nat hook output priority -100;
    tcp dport 81 redirect to :80
  }}
  chain out {{
    type filter hook output priority 0;
    ct mark set {MARK:#x}
  }}
}}
"""
ICMP_ECHO = bytes.fromhex("0800f7f700070001")


@contextmanager
def some_connections() -> Generator[None]:
    with Links() as links:
        links.configure(1)
    load_table(TABLE)
    with ExitStack() as opened:

        def made(kind: int, protocol: int = 0) -> socket.socket:
            return opened.enter_context(socket.socket(socket.AF_INET, kind, protocol))

        listening = made(socket.SOCK_STREAM)
        listening.bind((HERE, 80))
        listening.listen()
        for port in (80, 81):
            made(socket.SOCK_STREAM).connect((HERE, port))
        made(socket.SOCK_DGRAM).sendto(b"x", (HERE, 53))
        ping = made(socket.SOCK_RAW, socket.IPPROTO_ICMP)
        ping.sendto(ICMP_ECHO, (HERE, 0))
        ended = made(socket.SOCK_STREAM)
        ended.connect((HERE, 80))
        ended.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes.fromhex("0100000000000000"))
        ended.close()
        yield


def in_a_new_namespace(check: Callable[[Flows, Flows], None]) -> None:
    def there() -> None:
        text, netlink = Flows(), Flows(most_as_text=-1)
        try:
            with some_connections():
                check(text, netlink)
        finally:
            text.close()
            netlink.close()

    World.do(None, there)


def kinds(flows: list[Flow]) -> set[tuple[int, int, bool, bool]]:
    return {(flow.protocol, flow.destination_port, flow.redirected, flow.alive) for flow in flows}


ALL = {(6, 80, False, True), (6, 81, True, True), (6, 80, False, False), (17, 53, False, True), (1, 0x800, False, True)}


def test_both_ways_of_listing_tell_the_same() -> None:
    def check(text: Flows, netlink: Flows) -> None:
        assert kinds(text.of_slot(3)) == ALL
        assert set(text.of_slot(3)) == set(netlink.of_slot(3)) == set(text.every(MARK))
        assert text.of_slot(4) == netlink.of_slot(4) == []

    in_a_new_namespace(check)


@pytest.mark.parametrize("protocol", [1, 6, 17])
def test_what_is_ended_is_gone_whichever_way_it_was_listed(protocol: int) -> None:
    def check(text: Flows, netlink: Flows) -> None:
        for way in (text, netlink):
            one = next(flow for flow in way.of_slot(3) if flow.protocol == protocol)
            for _ in range(2):
                way.end([one])
            assert one not in text.of_slot(3)
            assert one not in netlink.of_slot(3)
            if protocol != 6:
                return

    in_a_new_namespace(check)


def test_connections_are_marked_and_ended_by_their_answers_and_by_their_slot() -> None:
    def check(text: Flows, _netlink: Flows) -> None:
        before = text.of_slot(3)
        text.mark(before, MARK + 1)
        assert {flow.mark for flow in text.of_slot(3)} == {MARK + 1}
        one = next(flow for flow in before if flow.alive and flow.destination_port == 80)
        text.end_answered([answers_to(one)])
        assert len(text.of_slot(3)) == len(before) - 1
        text.forget(4)
        assert len(text.of_slot(3)) == len(before) - 1
        text.forget(3)
        assert text.of_slot(3) == []

    in_a_new_namespace(check)
