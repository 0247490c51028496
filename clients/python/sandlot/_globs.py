# Derived by generate.py: change sandboxd/builds/globs.py instead.
"""Patterns over paths, as `.dockerignore` and COPY have them: `*` and `?` stay within a name, `**` crosses any number.

Matching takes time in proportion to pattern times path, whatever the pattern: patterns come from strangers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_LONGEST: Final = 4096
_ANY_NAMES: Final = "**"


class PatternError(ValueError):
    """It is no pattern."""


class Globs:
    """Whether a path, or a directory that it lies in, matches any of some patterns."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [parts for text in patterns if (parts := pattern_parts(text))]

    def match(self, path: bytes) -> bool:
        """Tell; the path has no slash at its ends."""
        names = names_of(path)
        return any(matches(pattern, names, below=True) for pattern in self._patterns)


@dataclass(frozen=True, slots=True)
class _Rule:
    parts: tuple[str, ...]
    keeps: bool


class Ignore:
    """The rules of a `.dockerignore`: the last one that fits decides."""

    def __init__(self, text: str) -> None:
        self._rules: list[_Rule] = []
        for raw in text.removeprefix("\ufeff").splitlines():
            line = raw.strip()
            if line and not raw.startswith("#"):
                parts = pattern_parts(line.removeprefix("!").strip())
                if parts:
                    self._rules.append(_Rule(parts, line.startswith("!")))

    def ignores(self, path: bytes) -> bool:
        """Tell whether a path of the context is left out."""
        names = names_of(path)
        left_out = False
        for rule in self._rules:
            if rule.keeps == left_out and matches(rule.parts, names, below=True):
                left_out = not rule.keeps
        return left_out


def names_of(path: bytes) -> list[str]:
    """Take a path apart."""
    return path.decode("utf-8", "surrogateescape").split("/")


def pattern_parts(text: str) -> tuple[str, ...]:
    """Take a pattern apart; `..` does not lead out of the root. PatternError."""
    if len(text) > _LONGEST:
        raise PatternError(f"a pattern has more than {_LONGEST} characters")
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."} and not (part == _ANY_NAMES and parts[-1:] == [_ANY_NAMES]):
            _tokens(part)
            parts.append(part)
    return tuple(parts)


def matches(pattern: Sequence[str], names: Sequence[str], *, below: bool = False) -> bool:
    """Tell whether the names are what the pattern says; with `below`, also what lies in a directory that is."""
    reached = _onward(pattern, {0})
    for name in names:
        if below and len(pattern) in reached:
            return True
        following: set[int] = set()
        for at in reached:
            if at < len(pattern) and pattern[at] == _ANY_NAMES:
                following.add(at)
            elif at < len(pattern) and name_matches(pattern[at], name):
                following.add(at + 1)
        reached = _onward(pattern, following)
    return len(pattern) in reached


def _onward(pattern: Sequence[str], reached: set[int]) -> set[int]:
    """`**` also stands for no name at all."""
    found = set(reached)
    for start in reached:
        at = start
        while at < len(pattern) and pattern[at] == _ANY_NAMES:
            at += 1
            found.add(at)
    return found


def is_pattern(text: str) -> bool:
    """Tell whether a path stands for more than itself."""
    return any(letter in text for letter in "*?[")


def name_matches(pattern: str, name: str) -> bool:
    """Match one name, going back to no more than the last `*`."""
    tokens = _tokens(pattern)
    at = position = 0
    star, resume = -1, 0
    while position < len(name):
        if at < len(tokens) and tokens[at] is None:
            star, resume = at, position
            at += 1
        elif at < len(tokens) and _fits(tokens[at], name[position]):
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(token is None for token in tokens[at:])


@dataclass(frozen=True, slots=True)
class _Letters:
    """One letter out of some, or none of them."""

    ranges: tuple[tuple[str, str], ...]
    inverted: bool


def _fits(token: "_Letters | None", letter: str) -> bool:
    return token is not None and token.inverted != any(low <= letter <= high for low, high in token.ranges)


_ANY_LETTER: Final = _Letters((), inverted=True)


@lru_cache(1024)
def _tokens(pattern: str) -> tuple[_Letters | None, ...]:
    """Take a pattern for a name apart; None is `*`. PatternError."""
    tokens: list[_Letters | None] = []
    rest = iter(pattern)
    for letter in rest:
        if letter == "*":
            if tokens[-1:] != [None]:
                tokens.append(None)
        elif letter == "?":
            tokens.append(_ANY_LETTER)
        elif letter == "[":
            tokens.append(_letters(pattern, rest))
        else:
            literal = next(rest, "\\") if letter == "\\" else letter
            tokens.append(_Letters(((literal, literal),), inverted=False))
    return tuple(tokens)


def _letters(pattern: str, rest: Iterable[str]) -> _Letters:
    """Read `[a-z]` or `[^a-z]`, from behind the bracket."""
    inverted = False
    given: list[str] = []
    plain: list[bool] = []
    letters = iter(rest)
    for letter in letters:
        if letter == "]" and given:
            return _Letters(_ranges(given, plain), inverted)
        if letter == "^" and not given and not inverted:
            inverted = True
        elif letter == "\\":
            given.append(next(letters, "\\"))
            plain.append(True)
        else:
            given.append(letter)
            plain.append(letter != "-")
    raise PatternError(f"{pattern[:100]!r} has a bracket without its end")


def _ranges(given: list[str], plain: list[bool]) -> tuple[tuple[str, str], ...]:
    ranges: list[tuple[str, str]] = []
    at = 0
    while at < len(given):
        if at + 2 < len(given) and not plain[at + 1]:
            ranges.append((given[at], given[at + 2]))
            at += 3
        else:
            ranges.append((given[at], given[at]))
            at += 1
    return tuple(ranges)
