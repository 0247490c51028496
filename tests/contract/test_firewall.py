"""The table and its elements as a kernel takes them, in a namespace made for each test."""

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from netpolicy.compile import (
    ROUTER_TABLE,
    Change,
    Element,
    host_table,
    node_address_element,
    policy_change,
    router_table,
    slot_elements,
)
from netpolicy.firewall import Firewall, FirewallError, delete_table, load_table, run_nft, table_text
from netpolicy.policy import Mode, Policy
from network_world import World

OPEN = Policy(Mode.OPEN)
BLOCKED = Policy(Mode.BLOCKED)
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


def test_both_tables_load_and_load_again() -> None:
    def check(firewall: Firewall) -> None:
        for _ in range(2):
            load_table(router_table(slots=[(0, "sbx0", ADDRESS)], open_interfaces=["sbx0"], node_addresses=[ADDRESS]))
            load_table(host_table(name="sandlot_hd", uplink="slhd", address=ADDRESS))
        assert firewall.open_interfaces() == {"sbx0"}
        assert table_text("sandlot_hd") is not None
        delete_table("sandlot_hd")
        delete_table("sandlot_hd")
        assert table_text("sandlot_hd") is None

    in_a_new_namespace(check)


def test_changes_are_idempotent() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        for _ in range(2):
            firewall.apply(Change(add=(*slot_elements(7, "sbx7", ADDRESS), node_address_element(ADDRESS))))
            firewall.apply(policy_change("sbx7", OPEN))
            assert firewall.open_interfaces() == {"sbx7"}
        assert '"sbx7" . 10.231.0.1' in run_nft("list", "set", "inet", ROUTER_TABLE, "sources")
        assert '"sbx7" : 0x00080000' in run_nft("list", "map", "inet", ROUTER_TABLE, "marks")
        for _ in range(2):
            firewall.apply(policy_change("sbx7", BLOCKED))
            firewall.apply(Change(remove=slot_elements(7, "sbx7", ADDRESS)))
            firewall.forget_connections(7)
            assert firewall.open_interfaces() == set()
        assert "elements" not in run_nft("list", "set", "inet", ROUTER_TABLE, "sources")

    in_a_new_namespace(check)


def test_a_change_is_all_or_nothing_and_the_next_one_works() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        good, bad = policy_change("sbx1", OPEN).add[0], Element("no_such_set", bytes(16))
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
        firewall.apply(policy_change("sbx1", OPEN))
        assert firewall.generation() != before

    in_a_new_namespace(check)


def test_without_a_table_nothing_is_open() -> None:
    def check(firewall: Firewall) -> None:
        assert firewall.open_interfaces() == set()
        with pytest.raises(FirewallError):
            firewall.apply(policy_change("sbx1", OPEN))

    in_a_new_namespace(check)


def test_a_thousand_open_slots_are_listed() -> None:
    @with_table
    def check(firewall: Firewall) -> None:
        names = {f"sbx{index}" for index in range(1000)}
        firewall.apply(Change(add=tuple(policy_change(name, OPEN).add[0] for name in sorted(names))))
        assert firewall.open_interfaces() == names

    in_a_new_namespace(check)
