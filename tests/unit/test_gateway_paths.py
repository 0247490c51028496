"""Servers below a path of an origin that all share: what they see of it, and what they say to its visitors."""

import pytest

from tunnels.hygiene import inward, outward, own_cookie, own_location, token_cookie
from tunnels.routing import Names, Visit

ID = "sbx" + "a" * 20
NAMES = Names("localhost", by_path=True)
CUT = f"/s/{ID}/80"


def visit(target: str) -> Visit:
    found = NAMES.find(target, ["gate:7080"], [], [])
    assert isinstance(found, Visit)
    return found


def seen_by(found: Visit) -> dict[str, str]:
    return dict(inward([], found, client="c", scheme="http", host="gate:7080", identity=None))


def test_a_whole_path_is_seen_whole() -> None:
    whole, cut = visit(f"/w/{ID}/80/lab?a=1"), visit(f"/s/{ID}/80/lab?a=1")
    assert (whole.target, whole.prefix, whole.cut) == (f"/w/{ID}/80/lab?a=1", f"/w/{ID}/80", "")
    assert (cut.target, cut.prefix, cut.cut) == ("/lab?a=1", CUT, CUT)
    assert visit(f"/w/{ID}/80?a").target == f"/w/{ID}/80/?a"
    assert "X-Forwarded-Prefix" not in seen_by(whole)
    assert seen_by(cut)["X-Forwarded-Prefix"] == CUT
    for each in (whole, cut):
        assert f"Path={each.prefix}/;" in token_cookie("t", each, secure=False, seconds=1)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("/lab?next=/x", f"{CUT}/lab?next=/x"),
        ("/", f"{CUT}/"),
        ("http://gate:7080/lab", f"http://gate:7080{CUT}/lab"),
        ("//GATE:7080/lab", f"//GATE:7080{CUT}/lab"),
        (f"{CUT}/lab", f"{CUT}/lab"),
        ("/s/" + ID + "/800/lab", f"{CUT}/s/{ID}/800/lab"),
        ("lab", "lab"),
        ("?x", "?x"),
        ("https://elsewhere/lab", "https://elsewhere/lab"),
        ("//elsewhere/lab", "//elsewhere/lab"),
        ("http://[/x", "http://[/x"),
        ("http://gate:7080", "http://gate:7080"),
        ("javascript:/x", "javascript:/x"),
        ("", ""),
    ],
)
def test_a_redirect_stays_with_its_server(said: str, heard: str) -> None:
    assert own_location(said, CUT, "gate:7080") == heard
    assert own_location(said, "", "gate:7080") == said


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("a=1", f"a=1; Path={CUT}/"),
        ("a=1; Path=/; HttpOnly", f"a=1; HttpOnly; Path={CUT}/"),
        ("a=1; path=/x", f"a=1; Path={CUT}/x"),
        (f"a=1; Path={CUT}/x", f"a=1; Path={CUT}/x"),
        ("a=1; Path=/; Path=/y", f"a=1; Path={CUT}/y"),
        ("a=1; Path=x; Domain=gate", f"a=1; Path={CUT}/"),
        ("path=1; Path=/", f"path=1; Path={CUT}/"),
        ("domain=1", f"domain=1; Path={CUT}/"),
    ],
)
def test_a_cookie_goes_to_nobody_but_who_set_it(said: str, heard: str) -> None:
    assert own_cookie(said, CUT) == heard


def test_with_a_name_of_its_own_a_server_has_the_whole_of_it() -> None:
    found = NAMES.find("/", [f"80-{ID}.localhost"], [], [])
    assert isinstance(found, Visit)
    pairs = [("Set-Cookie", "a=1; Path=/; Secure"), ("Location", "/lab")]
    assert outward(pairs, found, "x") == pairs
