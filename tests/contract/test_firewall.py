"""The table and its elements as a kernel takes them, in a namespace made for each test."""

import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import pytest

from netpolicy.compile import ROUTER_TABLE, TablePart, host_table, router_table
from netpolicy.elements import (
    ALLOW,
    SOURCES,
    Change,
    Element,
    Opening,
    change_between,
    node_address_element,
    opening_element,
    policy_elements,
    source_element,
)
from netpolicy.firewall import Firewall, FirewallError, delete_table, load_table, run_nft, table_text
from netpolicy.flows import Flows
from netpolicy.platform import Platform
from netpolicy.policy import BLOCKED, OPEN, Policy, parse_policy
from network_world import World

ADDRESS = IPv4Address("10.231.0.1")


def in_a_new_namespace(check: Callable[[Firewall], None]) -> None:
    def there() -> None:
        firewall = Firewall()
        try:
            check(firewall)
        finally:
            firewall.close()

    World.do(None, there)


def with_table(check: Callable[[Firewall], None]) -> Callable[[Firewall], None]:
    def loaded(firewall: Firewall) -> None:
        load_table(router_table())
        check(firewall)

    return loaded


def of_policy(index: int, policy: Policy = OPEN, generation: int = 1) -> tuple[Element, ...]:
    return policy_elements(index, f"sbx{index}", generation, policy)


def test_both_tables_load_and_load_again() -> None:
    def check(firewall: Firewall) -> None:
        for _ in range(2):
            load_table(router_table(Platform(node_addresses=frozenset({ADDRESS}))))
            load_table(host_table(name="sandlot_hd", uplink="slhd", address=ADDRESS))
        assert firewall.elements("node_addresses") == [node_address_element(ADDRESS)]
        assert table_text("sandlot_hd") is not None
        delete_table("sandlot_hd")
        delete_table("sandlot_hd")
        assert table_text("sandlot_hd") is None

    in_a_new_namespace(check)


def test_new_rules_leave_the_elements_of_slots_and_replace_all_others() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        elements = {*of_policy(3, WHOLE), source_element("sbx3", ADDRESS)}
        firewall.apply(Change(add=(*elements, node_address_element(ADDRESS))))
        before = run_nft("--stateless", "list", "table", "inet", ROUTER_TABLE)
        load_table(router_table(Platform(extra_denied=(IPv4Network("8.8.8.0/24"),)), tunnels=part("0x1")))
        load_table(router_table(Platform(exceptions=(IPv4Network("10.9.0.0/16"),)), tunnels=part("0x1, 0x2")))
        load_table(router_table(tunnels=part("0x2")))
        assert firewall.slot_elements() == {"sbx3": elements}
        assert firewall.elements("node_addresses") == []
        assert len(firewall.elements("tun")) == 1
        load_table(router_table(Platform(node_addresses=frozenset({ADDRESS}))))
        after = run_nft("--stateless", "list", "table", "inet", ROUTER_TABLE)
        assert [line for line in before.splitlines() if line not in after.splitlines()] == []

    in_a_new_namespace(check)


def part(mark: str) -> TablePart:
    return TablePart(sets=f"  set tun {{ type mark; elements = {{ {mark} }} }}", forward="    ct mark @tun accept")


WHOLE = parse_policy(
    {
        "mode": "allowlist",
        "allow": ["0.0.0.0/0:1-1023", "255.255.255.255", "1.2.3.0/24", "1.2.3.4:2000/udp", "a.example"],
        "deny": ["1.2.3.4", "9.9.9.9:53/udp", "b.example"],
        "limits": {
            "connections": 7,
            "new_connections_per_second": 3,
            "up_bytes_per_second": 100_000,
            "down_bytes_per_second": 10_000_000_000,
        },
    }
)


def test_the_kernel_gives_back_every_element_as_it_was_given() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        elements = set(of_policy(7, WHOLE))
        for _ in range(2):
            firewall.apply(Change(add=tuple(elements)))
            assert firewall.slot_elements() == {"sbx7": elements}
        for _ in range(2):
            firewall.apply(Change(remove=tuple(elements)))
            assert firewall.slot_elements() == {}

    in_a_new_namespace(check)


def test_a_policy_changes_into_any_other_in_one_step() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        policies = [OPEN, WHOLE, BLOCKED, parse_policy({"mode": "allowlist", "allow": ["1.2.0.0/16"]}), WHOLE, OPEN]
        present: set[Element] = set()
        for generation, policy in enumerate(policies):
            wanted = set(of_policy(7, policy, generation))
            firewall.apply(change_between(present, wanted))
            assert firewall.slot_elements() == {"sbx7": wanted}
            present = wanted

    in_a_new_namespace(check)


def test_what_a_name_opens_ends_by_itself() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        one, some = Opening("tcp", ADDRESS, 5432, 5432), Opening("udp", ADDRESS, 1, 65535)
        for _ in range(2):
            opened = [opening_element("sbx7", opening, 60_000) for opening in (one, some)]
            firewall.apply(Change(remove=tuple(opened), add=tuple(opened)))
            assert len(firewall.slot_elements()["sbx7"]) == 2
        text = run_nft("list", "table", "inet", ROUTER_TABLE)
        assert text.count("timeout 1m expires 5") == 2
        firewall.apply(Change(add=(opening_element("sbx8", one, 1),)))
        deadline = time.monotonic() + 30
        while "sbx8" in firewall.slot_elements() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "sbx8" not in firewall.slot_elements()

    in_a_new_namespace(check)


def test_changes_are_idempotent() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        flows = Flows()
        for _ in range(2):
            firewall.apply(Change(add=(source_element("sbx7", ADDRESS), *of_policy(7))))
            assert firewall.open_interfaces() == {"sbx7"}
        assert '"sbx7" . 10.231.0.1' in run_nft("list", "set", "inet", ROUTER_TABLE, "sources")
        assert '"sbx7" : 0x00080001' in run_nft("list", "map", "inet", ROUTER_TABLE, "marks")
        for _ in range(2):
            firewall.apply(Change(remove=(source_element("sbx7", ADDRESS), *of_policy(7))))
            flows.forget(7)
            flows.forget(7, of_the_node=True)
            assert flows.of_slot(7) == []
            assert firewall.open_interfaces() == set()
        assert firewall.elements(SOURCES) == []
        flows.close()

    in_a_new_namespace(check)


def test_a_change_is_all_or_nothing_and_the_next_one_works() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        good, bad = open_element("sbx1"), Element("no_such_set", bytes(16))
        with pytest.raises(FirewallError, match="No such file"):
            firewall.apply(Change(add=(good, bad, good)))
        assert firewall.open_interfaces() == set()
        firewall.apply(Change(add=(good,)))
        assert firewall.open_interfaces() == {"sbx1"}

    in_a_new_namespace(check)


def test_every_change_is_counted() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        before = firewall.generation()
        assert firewall.generation() == before
        firewall.apply(Change(add=(open_element("sbx1"),)))
        assert firewall.generation() != before

    in_a_new_namespace(check)


def test_without_a_table_nothing_is_open() -> None:
    def check(firewall: Firewall) -> None:
        assert firewall.open_interfaces() == set()
        with pytest.raises(FirewallError):
            firewall.apply(Change(add=(open_element("sbx1"),)))

    in_a_new_namespace(check)


def open_element(interface: str) -> Element:
    return next(element for element in policy_elements(0, interface, 0, OPEN) if element.set_name == "open_if")


def test_more_than_a_datagram_holds_is_refused_before_it_is_sent() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        many = tuple(Element(ALLOW, bytes(28), last=bytes(28)) for _ in range(5000))
        with pytest.raises(FirewallError, match="too many"):
            firewall.apply(Change(add=many))

    in_a_new_namespace(check)


def test_the_largest_policy_fits_one_transaction() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        rules = [f"93.{place}.0.0/24" for place in range(0, 256, 1)]
        one, two = (
            parse_policy({"mode": mode, name: rules}) for mode, name in (("allowlist", "allow"), ("open", "deny"))
        )
        first, second = set(of_policy(1, one)), set(of_policy(1, two, 2))
        firewall.apply(Change(add=tuple(first)))
        firewall.apply(change_between(first, second))
        assert firewall.slot_elements() == {"sbx1": second}

    in_a_new_namespace(check)


def test_a_thousand_open_slots_are_listed() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        names = {f"sbx{index}" for index in range(1000)}
        firewall.apply(Change(add=tuple(open_element(name) for name in sorted(names))))
        assert firewall.open_interfaces() == names

    in_a_new_namespace(check)
