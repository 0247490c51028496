"""References are read exactly, and mean the same however much of them is left out."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.references import (
    InvalidReferenceError,
    Naming,
    NoDefaultRegistryError,
    Reference,
    familiar,
    names_registry,
    parse,
)

HEX = "0123456789abcdef" * 4
OWN = Naming("registry.example.com", frozenset())
HUB = Naming("docker.io", frozenset({"docker.io"}))


@pytest.mark.parametrize(
    ("text", "canonical", "short"),
    [
        ("python", "docker.io/library/python:latest", "python:latest"),
        ("python:3.12", "docker.io/library/python:3.12", "python:3.12"),
        ("docker.io/python", "docker.io/library/python:latest", "python:latest"),
        ("index.docker.io/library/python", "docker.io/library/python:latest", "python:latest"),
        ("team/app:v1", "docker.io/team/app:v1", "team/app:v1"),
        (f"team/app@sha256:{HEX}", f"docker.io/team/app@sha256:{HEX}", f"team/app@sha256:{HEX}"),
        (f"app:v1@sha256:{HEX}", f"docker.io/library/app:v1@sha256:{HEX}", f"app:v1@sha256:{HEX}"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
        ("GHCR.io/team/app", "ghcr.io/team/app:latest", "ghcr.io/team/app:latest"),
        ("10.0.0.7:5000/a/b/c", "10.0.0.7:5000/a/b/c:latest", "10.0.0.7:5000/a/b/c:latest"),
        ("[2001:db8::1]:5000/app", "[2001:db8::1]:5000/app:latest", "[2001:db8::1]:5000/app:latest"),
        ("a__b/c.d-e--f", "docker.io/a__b/c.d-e--f:latest", "a__b/c.d-e--f:latest"),
    ],
)
def test_what_is_left_out_is_filled_in(text: str, canonical: str, short: str) -> None:
    reference = parse(text, HUB)
    assert (str(reference), familiar(reference, HUB)) == (canonical, short)
    assert parse(canonical, HUB) == parse(short, HUB) == reference


def test_without_a_default_the_registry_must_be_named() -> None:
    assert str(parse("registry.example.com/app")) == "registry.example.com/app:latest"
    assert familiar(parse("registry.example.com/app")) == "registry.example.com/app:latest"
    for text in ("app", "team/app:v1", f"app@sha256:{HEX}"):
        assert not names_registry(text)
        with pytest.raises(NoDefaultRegistryError):
            parse(text)
    assert names_registry("localhost/app")


def test_another_default_and_no_library() -> None:
    assert str(parse("app", OWN)) == "registry.example.com/app:latest"
    assert str(parse("docker.io/app", OWN)) == "docker.io/app:latest"
    assert familiar(parse("docker.io/app", OWN), OWN) == "docker.io/app:latest"


def test_the_digest_decides() -> None:
    assert parse(f"app:v1@sha256:{HEX}", OWN).wanted == f"sha256:{HEX}"
    assert parse("app:v1", OWN).wanted == "v1"
    assert parse("app", OWN).wanted == "latest"


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "/", "@", "app:", "app@", "app@sha256:abc", f"app@sha256:{HEX.upper()}", f"app@sha512:{HEX}{HEX}",
        "App", "app:-x", "app:" + "x" * 129, "a//b", "/a", "a/", "-a", "a_", "a..b", "a___b", "a b", "a\n",
        "a:b:c", "../a",
        "https://registry.example.com/a", "localhost:0/a", "localhost:65536/a", "localhost:x/a", "user@host/a",
        "a/" * 200 + "a",
        "ä", "app:ä", "-x.com/a", "x-.com/a", "x" * 600, "registry.example.com/", "[::1/a", "a\0b",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        parse(text, HUB)


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
PART = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
HOST = st.tuples(
    st.lists(LABEL, min_size=2, max_size=3).map(".".join),
    st.integers(1, 65535).map(lambda port: f":{port}") | st.just(""),
).map("".join)
REFERENCES = st.builds(
    Reference,
    HOST | st.just("docker.io") | st.just("localhost"),
    st.lists(PART, min_size=2, max_size=4).map("/".join),
    TAG,
    st.none() | st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: f"sha256:{text}"),
)


@given(REFERENCES)
def test_rendering_is_undone_by_reading(reference: Reference) -> None:
    assert parse(str(reference)) == reference
    for naming in (Naming(), OWN, Naming(reference.registry, frozenset({reference.registry}))):
        assert parse(familiar(reference, naming), naming) == reference


@given(st.text(string.printable, max_size=60) | st.text(max_size=20))
def test_reading_fails_in_one_way_only(text: str) -> None:
    try:
        reference = parse(text, HUB)
    except InvalidReferenceError:
        return
    assert parse(str(reference)) == reference
    assert str(reference).isprintable()
    assert ".." not in reference.repository.split("/")
