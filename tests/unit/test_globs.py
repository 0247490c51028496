"""Patterns over paths, and what a `.dockerignore` leaves out."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.builds.globs import Globs, Ignore, PatternError, matches, name_matches, pattern_parts


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("a", "a", True),
        ("a", "a/b", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("*.py", "x.py", True),
        ("*.py", "d/x.py", False),
        ("**/*.py", "x.py", True),
        ("**/*.py", "d/e/x.py", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("**", "a/b", True),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("?", "é", True),
        ("a\\*", "a*", True),
        ("a\\*", "ab", False),
        ("./a/", "a", True),
        ("x/../a", "a", True),
        ("../../a", "a", True),
    ],
)
def test_patterns(pattern: str, path: str, *, fits: bool) -> None:
    assert matches(pattern_parts(pattern), path.split("/")) is fits


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(PatternError):
        pattern_parts("a[b")


def test_what_lies_in_what_fits() -> None:
    assert Globs(["a/*"]).match(b"a/b/c")
    assert not Globs(["a/*"]).match(b"a")


@pytest.mark.parametrize(
    ("rules", "left_out", "kept"),
    [
        ("node_modules\n*.log", ["node_modules", "node_modules/a/b", "x.log"], ["src/x.log", "a"]),
        ("**/*.log", ["x.log", "a/b/x.log"], ["x"]),
        ("*\n!src\n", ["a", "b/c"], ["src", "src/x"]),
        ("*.md\n!README*.md\nREADME-secret.md", ["a.md", "README-secret.md"], ["README.md"]),
        ("# *\n\n  \n/a/", ["a", "a/b"], ["b", "c/a"]),
        ("!x\nx", ["x"], []),
    ],
)
def test_ignoring(rules: str, left_out: list[str], kept: list[str]) -> None:
    ignore = Ignore(rules)
    assert [path for path in left_out if not ignore.ignores(path.encode())] == []
    assert [path for path in kept if ignore.ignores(path.encode())] == []


@given(st.text(alphabet="ab*?", max_size=12), st.text(alphabet="ab", max_size=12))
def test_names_match_as_the_same_expression_does(pattern: str, name: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    assert name_matches(pattern, name) is (re.fullmatch(expression, name, re.DOTALL) is not None)


@given(
    st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=6),
    st.lists(st.sampled_from("ab"), max_size=6),
)
def test_paths_match_as_the_same_expression_does(pattern: list[str], names: list[str]) -> None:
    parts = pattern_parts("/".join(pattern))
    expression = "".join({"*": "[^/]+/", "**": "([^/]+/)*"}.get(part, f"{part}/") for part in parts)
    assert matches(parts, names) is (re.fullmatch(expression, "".join(f"{name}/" for name in names)) is not None)


def test_no_pattern_takes_long() -> None:
    assert not name_matches("a*" * 1000 + "b", "a" * 4000)
    assert not matches(pattern_parts("/".join(["**", "a"] * 500) + "/b"), ["a"] * 500)


@given(st.text())
def test_any_rules_are_read_or_refused(text: str) -> None:
    with suppress(PatternError):
        Ignore(text).ignores(b"a/b")
