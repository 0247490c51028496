"""Where a request at the gateway leads, and which headers pass."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.sockets import BEARER_PREFIX
from sandboxd.contract.tunnels import GUEST_PORT
from tunnels import hygiene, routing
from tunnels.limits import Limits
from tunnels.routing import DataCall, Names, RoutingError, Visit

ID = "sbx" + "a" * 20
NAMES = Names("boxes.example.com", by_path=True)
HOST = f"8000-{ID}.boxes.example.com"

_ports = st.integers(1, 65_535).filter(lambda port: port != GUEST_PORT)
_ids = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=20, max_size=20).map("sbx".__add__)
_targets = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=50).map(
    "/".__add__
)


def find(target: str, host: str = HOST, names: Names = NAMES) -> Visit | DataCall:
    return names.find(target, [host], [], [])


@given(_ids, _ports, _targets, st.sampled_from(["", ":443", ":80"]))
def test_every_port_of_every_sandbox_has_three_addresses(sandbox: str, port: int, target: str, suffix: str) -> None:
    by_name = NAMES.find(target, [f"{port}-{sandbox}.BOXES.example.com{suffix}"], [], [])
    by_headers = NAMES.find(target, ["any"], [sandbox], [str(port)])
    by_path = NAMES.find(f"/s/{sandbox}/{port}{target}", ["any"], [], [])
    for found in (by_name, by_headers, by_path):
        assert isinstance(found, Visit)
        assert (found.sandbox_id, found.port, found.target) == (sandbox, port, target)


@given(st.text(max_size=80))
def test_no_name_leads_to_a_port_it_does_not_say(name: str) -> None:
    try:
        found = find("/", name + ".boxes.example.com")
    except RoutingError:
        return
    assert isinstance(found, Visit)
    assert f"{found.port}-{found.sandbox_id}" == name.lower()


@given(_targets, st.text(max_size=60))
def test_whatever_is_asked_is_answered(target: str, host: str) -> None:
    with suppress(RoutingError):
        find(target, host)


def test_the_guests_port_is_named_by_no_form() -> None:
    assert (routing.GUEST_PORT, routing.BEARER_PREFIX) == (GUEST_PORT, BEARER_PREFIX)
    for target, host, ids, ports in (
        ("/", f"{GUEST_PORT}-{ID}.boxes.example.com", [], []),
        (f"/s/{ID}/{GUEST_PORT}/", "any", [], []),
        ("/", "any", [ID], [str(GUEST_PORT)]),
    ):
        with pytest.raises(RoutingError) as refused:
            NAMES.find(target, [host], ids, ports)
        assert refused.value.code == "tunnel_not_found"


def test_calls_of_the_data_plane_are_those_of_no_name() -> None:
    assert find(f"/v1/sandboxes/{ID}/files?path=/x", "10.0.0.1:7080") == DataCall(ID, "files")
    assert find(f"/v1/sandboxes/{ID}/run", "boxes.example.com") == DataCall(ID, "run")
    assert isinstance(find(f"/v1/sandboxes/{ID}/run"), Visit)
    with pytest.raises(RoutingError):
        find(f"/v1/sandboxes/{ID}", "10.0.0.1")


@pytest.mark.parametrize("hosts", [[], ["a", "a"], ["a b"], ["a/b"], ["u@a"], ["a:b"], [""]])
def test_there_is_one_host(hosts: list[str]) -> None:
    with pytest.raises(RoutingError) as refused:
        NAMES.find("/", hosts, [], [])
    assert refused.value.code == "malformed_request"


@pytest.mark.parametrize(("ids", "ports"), [([ID], []), ([], ["80"]), ([ID, ID], ["80"]), ([ID], ["80", "81"])])
def test_the_two_headers_go_together(ids: list[str], ports: list[str]) -> None:
    with pytest.raises(RoutingError):
        NAMES.find("/", ["any"], ids, ports)


def test_without_paths_there_are_none() -> None:
    with pytest.raises(RoutingError):
        find(f"/s/{ID}/80/", "any", Names("localhost", by_path=False))
    assert find(f"/s/{ID}/80/", f"80-{ID}.localhost", Names("localhost", by_path=False)) == Visit(
        ID, 80, "host", f"/s/{ID}/80/"
    )


_names = st.sampled_from(["X-A", "Cookie", "X-Sandlot-Identity", "x_sandlot_sandbox", "Sandlot-Token", "Connection"])
_pairs = st.lists(st.tuples(_names, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)))


@given(_pairs)
def test_only_we_say_what_only_we_may(headers: list[tuple[str, str]]) -> None:
    visit = Visit(ID, 80, "host", "/")
    sent = hygiene.inward(headers, visit, client="1.2.3.4", scheme="http", host="h", identity=None)
    ours = [
        (name, value) for name, value in sent if name.lower().replace("_", "-").startswith(("x-sandlot", "sandlot"))
    ]
    assert ours == [("X-Sandlot-Sandbox", ID), ("X-Sandlot-Client-Address", "1.2.3.4")]
    assert not any("sandlot_token" in value for name, value in sent if name.lower() == "cookie")


@given(_targets)
def test_a_target_loses_our_parameter_and_nothing_else(target: str) -> None:
    plain = hygiene.without_token(target)
    assert "sandlot_token=" not in plain.partition("?")[2].replace("%", "")
    if "sandlot" not in target:
        assert plain in {target, target.removesuffix("?")}
    assert hygiene.without_token("/a?x=1&sandlot_token=t&y=%20") == "/a?x=1&y=%20"
    assert hygiene.without_token("/a?sandlot%5Ftoken=t") == "/a"


@pytest.mark.parametrize("cookie", ["sandlot_token=x", "sandlot_token =x", "\tsandlot_token\t=x", "=sandlot_token=x"])
def test_no_sandbox_sets_the_cookie_of_a_token_however_a_browser_reads_it(cookie: str) -> None:
    """Browsers strip what surrounds a name, and send back a cookie that has none as it is."""
    for form in ("host", "path"):
        visit = Visit(ID, 80, form, "/")
        assert hygiene.outward([("Set-Cookie", f"{cookie}; Path=/"), ("Set-Cookie", "a=1")], visit) == [
            ("Set-Cookie", "a=1")
        ]
    sent = hygiene.inward(
        [("Cookie", f"a=1; {cookie}")], Visit(ID, 80, "host", "/"), client="c", scheme="http", host="h", identity=None
    )
    assert ("Cookie", "a=1") in sent


def test_a_credential_that_is_offered_as_a_subprotocol_goes_nowhere() -> None:
    offered = [("Sec-WebSocket-Protocol", "chat, sandlot.bearer.eyJ.a.b,v2")]
    visit = Visit(ID, 80, "host", "/")
    sent = hygiene.inward(offered, visit, client="c", scheme="http", host="h", identity=None)
    assert ("Sec-WebSocket-Protocol", "chat, v2") in sent
    alone = hygiene.inward(
        [("Sec-WebSocket-Protocol", "sandlot.bearer.k")], visit, client="c", scheme="http", host="h", identity=None
    )
    assert not any(name == "Sec-WebSocket-Protocol" for name, _ in alone)


@pytest.mark.parametrize("name", [f"65536-{ID}", f"99999-{ID}", f"{GUEST_PORT}-{ID}"])
def test_a_server_name_stands_for_ports_that_a_tunnel_can_lead_to(name: str) -> None:
    assert NAMES.sandbox_of_name(f"{name}.boxes.example.com") is None
    assert NAMES.sandbox_of_name(f"443-{ID}.boxes.example.com") == (ID, 443)


def test_a_network_of_version_6_counts_as_one_client() -> None:
    """One host has 2^64 addresses there."""
    limits = Limits(most=100, most_of_one=2)
    assert limits.enter("2001:db8:1:2::1")
    assert limits.enter("2001:db8:1:2:ffff:ffff:ffff:ffff")
    assert not limits.enter("2001:db8:1:2::3")
    assert limits.enter("2001:db8:1:3::1")
    assert limits.enter("::ffff:192.0.2.1")
    assert limits.enter("192.0.2.1")
    assert not limits.enter("192.0.2.1")
    limits.leave("2001:db8:1:2::1")
    assert limits.enter("2001:db8:1:2::3")
    assert limits.enter("fe80::1%eth0")
    assert limits.enter("unknown")
