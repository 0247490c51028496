"""Dockerfiles, read into instructions: lines joined, heredocs taken, words split; what is not understood is refused.

Pure: the api reads one to say by line what is wrong with it and which images it wants; the node reads it to build.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

INSTRUCTIONS: Final = frozenset(
    {
        *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
        *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
    }
)
MOST_INSTRUCTIONS: Final = 1000
MOST_STAGES: Final = 64
_DIRECTIVE: Final = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_FLAG: Final = re.compile(r"--([a-z][a-z-]*)(?:=(.*))?")
_HEREDOC: Final = re.compile(r"<<(-?)(['\"]?)([A-Za-z_][A-Za-z0-9_]*)\2")
_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLAGS: Final[Mapping[str, frozenset[str]]] = {
    "FROM": frozenset({"platform"}),
    "COPY": frozenset({"from", "chown", "chmod"}),
    "ADD": frozenset({"chown", "chmod"}),
}
SCRATCH: Final = "scratch"


class DockerfileError(ValueError):
    """It cannot be built; `line` says where."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction. `rest` is what follows its flags, lines joined."""

    line: int
    keyword: str
    rest: str
    flags: Mapping[str, str] = field(default_factory=dict[str, str])
    body: str | None = None
    """With heredocs: the lines from behind the first one to the last end, as a shell reads them."""
    script: str | None = None
    """What a lone heredoc holds: all there is to run."""

    @property
    def text(self) -> str:
        """For people: one line."""
        flags = "".join(f"--{name}={value} " for name, value in self.flags.items())
        first = self.rest if self.script is None else self.script.strip().partition("\n")[0] + " …"
        return f"{self.keyword} {flags}{first}"[:400]

    def words(self) -> list[str] | None:
        """Return the words of a JSON form; None when it is none."""
        if not self.rest.startswith("["):
            return None
        try:
            value: Any = json.loads(self.rest)
        except ValueError:
            return None
        words = cast("list[object]", value) if isinstance(value, list) else [None]
        return [str(word) for word in words] if all(isinstance(word, str) for word in words) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One FROM and what follows it."""

    line: int
    number: int
    name: str | None
    base: str
    """As it is written, variables and all."""
    body: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """All of it."""

    escape: str
    arguments: tuple[Instruction, ...]
    """The ARGs before the first FROM."""
    stages: tuple[Stage, ...]

    def stage(self, target: str | None) -> Stage:
        """Return the stage of that name or number, else the last one. DockerfileError."""
        if target is None:
            return self.stages[-1]
        found = self.find(target, len(self.stages))
        if found is None:
            raise DockerfileError(self.stages[-1].line, f"there is no stage {target!r}")
        return found

    def find(self, name: str, before: int) -> Stage | None:
        """Return the last stage of that name, or that number, among the first ones."""
        for stage in reversed(self.stages[:before]):
            if stage.name == name.lower():
                return stage
        return self.stages[int(name)] if name.isdecimal() and len(name) < 4 and int(name) < before else None


def parse(text: str) -> Dockerfile:
    """Read a Dockerfile. DockerfileError."""
    escape, instructions = _read(text)
    arguments: list[Instruction] = []
    groups: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.keyword == "FROM":
            groups.append([instruction])
        elif groups:
            groups[-1].append(instruction)
        elif instruction.keyword == "ARG":
            arguments.append(instruction)
        else:
            raise DockerfileError(instruction.line, f"{instruction.keyword} comes before the first FROM")
    if not groups:
        raise DockerfileError(1, "there is no FROM")
    if len(groups) > MOST_STAGES:
        raise DockerfileError(groups[-1][0].line, f"there are more than {MOST_STAGES} stages")
    stages = tuple(_stage(number, group) for number, group in enumerate(groups))
    return Dockerfile(escape=escape, arguments=tuple(arguments), stages=stages)


def _stage(number: int, group: list[Instruction]) -> Stage:
    start = group[0]
    if "platform" in start.flags:
        raise DockerfileError(start.line, "FROM --platform is not supported: an image is built for its node")
    words = start.rest.split()
    if len(words) not in {1, 3} or (len(words) == 3 and words[1].upper() != "AS"):
        raise DockerfileError(start.line, "FROM takes an image, and a name behind AS")
    name = words[2].lower() if len(words) == 3 else None
    if name is not None and not _STAGE_NAME.fullmatch(name):
        raise DockerfileError(start.line, f"{name!r} is no name of a stage")
    return Stage(line=start.line, number=number, name=name, base=words[0], body=tuple(group[1:]))


def _read(text: str) -> tuple[str, list[Instruction]]:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    escape, at = _directives(lines)
    found: list[Instruction] = []
    while at < len(lines):
        start = at
        logical, at = _joined(lines, at, escape)
        if not logical:
            continue
        if len(found) >= MOST_INSTRUCTIONS:
            raise DockerfileError(start + 1, f"there are more than {MOST_INSTRUCTIONS} instructions")
        instruction = _instruction(logical, _first_line(lines, start))
        if instruction.keyword in {"RUN", "COPY", "ADD"} and (marks := list(_HEREDOC.finditer(instruction.rest))):
            instruction, at = _with_heredocs(instruction, marks, lines, at)
        found.append(instruction)
    return escape, found


def _directives(lines: list[str]) -> tuple[str, int]:
    """Read the comments at the very top that say how to read the rest."""
    escape, seen = "\\", set[str]()
    for number, line in enumerate(lines):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or (name := match[1].lower()) not in {"syntax", "escape", "check"} or name in seen:
            return escape, number
        seen.add(name)
        if name == "escape":
            if match[2] not in {"\\", "`"}:
                raise DockerfileError(number + 1, "escape is a backslash or a backtick")
            escape = match[2]
    return escape, len(lines)


def _first_line(lines: list[str], at: int) -> int:
    while not lines[at].strip() or lines[at].lstrip().startswith("#"):
        at += 1
    return at + 1


def _joined(lines: list[str], at: int, escape: str) -> tuple[str, int]:
    """Join lines that continue; comments and empty lines among them are none."""
    parts: list[str] = []
    while at < len(lines):
        line = lines[at]
        at += 1
        if line.lstrip().startswith("#"):
            continue
        stripped = line.rstrip()
        if not stripped:
            if parts:
                continue
            return "", at
        if not stripped.endswith(escape):
            parts.append(stripped if not parts else line.rstrip())
            break
        parts.append(stripped[:-1])
    return "".join(parts).strip(), at


def _instruction(logical: str, line: int) -> Instruction:
    word, *after = logical.split(None, 1)
    keyword = word.upper()
    if keyword not in INSTRUCTIONS:
        raise DockerfileError(line, f"{word[:40]!r} is no instruction")
    rest = "".join(after).strip()
    flags: dict[str, str] = {}
    while keyword not in {"ENV", "LABEL"} and rest.startswith("--"):
        flag, _, behind = rest.partition(" ")
        match = _FLAG.fullmatch(flag)
        if match is None or match[1] not in _FLAGS.get(keyword, ()):
            raise DockerfileError(line, f"{keyword} {flag[:60]} is not supported")
        if match[2] is None or match[1] in flags:
            raise DockerfileError(line, f"{keyword} --{match[1]} takes one value")
        flags[match[1]] = match[2]
        rest = behind.strip()
    if not rest:
        raise DockerfileError(line, f"{keyword} says nothing")
    return Instruction(line=line, keyword=keyword, rest=rest, flags=flags)


def _with_heredocs(
    instruction: Instruction, marks: list[re.Match[str]], lines: list[str], at: int
) -> tuple[Instruction, int]:
    if instruction.keyword != "RUN":
        raise DockerfileError(instruction.line, "heredocs are understood in RUN only")
    begin = at
    content: list[str] = []
    for mark in marks:
        content.clear()
        while True:
            if at >= len(lines):
                raise DockerfileError(instruction.line, f"the heredoc {mark[3]} has no end")
            line = lines[at].lstrip("\t") if mark[1] else lines[at]
            at += 1
            if line == mark[3]:
                break
            content.append(line)
    script = None
    if len(marks) == 1 and marks[0].group() == instruction.rest:
        script = "\n".join(content) + "\n"
        if script.startswith("#!"):
            raise DockerfileError(instruction.line, "a heredoc with an interpreter of its own is not supported")
    body = "\n".join(lines[begin:at]) + "\n"
    made = Instruction(
        line=instruction.line, keyword="RUN", rest=instruction.rest, flags=instruction.flags, body=body, script=script
    )
    return made, at


Lookup = Callable[[str], str | None]
"""The value of a variable; None: it has none."""


def split(text: str, escape: str) -> list[str]:
    """Split at blanks that are not quoted; quotes stay."""
    words: list[str] = []
    word, quote, escaped = "", "", False
    for letter in text:
        if escaped:
            word, escaped = word + letter, False
        elif letter == escape and quote != "'":
            word, escaped = word + letter, True
        elif quote:
            word += letter
            quote = "" if letter == quote else quote
        elif letter in " \t\n":
            if word:
                words.append(word)
            word = ""
        else:
            quote = letter if letter in "'\"" else ""
            word += letter
    return [*words, word] if word else words


def expand(text: str, lookup: Lookup, escape: str, line: int) -> str:
    """Put variables in and take quotes away. DockerfileError."""
    return _Expansion(text, lookup, escape, line).run()


class _Expansion:
    """One text on its way."""

    def __init__(self, text: str, lookup: Lookup, escape: str, line: int) -> None:
        self._text = text
        self._lookup = lookup
        self._escape = escape
        self._line = line
        self._at = 0

    def run(self) -> str:
        out: list[str] = []
        quote = ""
        while self._at < len(self._text):
            letter = self._text[self._at]
            self._at += 1
            if quote == "'":
                quote = "" if letter == "'" else quote
                out.append("" if letter == "'" else letter)
            elif letter == self._escape:
                out.append(self._escaped(quote))
            elif letter == "$":
                out.append(self._variable())
            elif letter == quote or (letter in "'\"" and not quote):
                quote = "" if quote else letter
            else:
                out.append(letter)
        if quote:
            raise DockerfileError(self._line, "a quote has no end")
        return "".join(out)

    def _escaped(self, quote: str) -> str:
        if self._at >= len(self._text):
            return self._escape
        letter = self._text[self._at]
        self._at += 1
        return letter if not quote or letter in f'"${self._escape}' else self._escape + letter

    def _variable(self) -> str:
        if self._text.startswith("{", self._at):
            return self._braced()
        match = _VARIABLE.match(self._text, self._at)
        if match is None:
            return "$"
        self._at = match.end()
        return self._lookup(match[0]) or ""

    def _braced(self) -> str:
        begin = self._at + 1
        match = _VARIABLE.match(self._text, begin)
        end = self._closing(begin)
        if match is None:
            raise DockerfileError(self._line, f"{self._text[begin - 2 : end + 1][:60]!r} names no variable")
        name, rest = match[0], self._text[match.end() : end]
        self._at = end + 1
        value = self._lookup(name)
        if not rest:
            return value or ""
        strict = not rest.startswith(":")
        operator, word = rest.removeprefix(":")[:1], rest.removeprefix(":")[1:]
        there = value is not None and (strict or bool(value))
        if operator == "-":
            return value or "" if there else self._word(word)
        if operator == "+":
            return self._word(word) if there else ""
        if operator == "?" and there:
            return value or ""
        if operator == "?":
            raise DockerfileError(self._line, f"{name}: {self._word(word) or 'is not set'}")
        raise DockerfileError(self._line, f"${{{name}{rest[:40]}}} is not supported")

    def _word(self, word: str) -> str:
        return expand(word, self._lookup, self._escape, self._line)

    def _closing(self, at: int) -> int:
        depth = 1
        for end in range(at, len(self._text)):
            if self._text[end] == "{" and self._text[end - 1] == "$":
                depth += 1
            elif self._text[end] == "}":
                depth -= 1
                if not depth:
                    return end
        raise DockerfileError(self._line, "a ${ has no }")


def pairs(instruction: Instruction, lookup: Lookup, escape: str) -> list[tuple[str, str]]:
    """Read `name=value …`, or the old `name value`. DockerfileError."""
    line = instruction.line
    words = split(instruction.rest, escape)
    if "=" not in words[0]:
        name, _, value = instruction.rest.partition(" ")
        if not value.strip():
            raise DockerfileError(line, f"{instruction.keyword} {name[:60]} has no value")
        return [(name, expand(value.strip(), lookup, escape, line))]
    found: list[tuple[str, str]] = []
    for word in words:
        name, equals, value = word.partition("=")
        name = expand(name, lookup, escape, line)
        if not equals or not name:
            raise DockerfileError(line, f"{word[:60]!r} is no name=value")
        found.append((name, expand(value, lookup, escape, line)))
    return found


def arguments(dockerfile: Dockerfile, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that FROM may name. DockerfileError."""
    known: dict[str, str] = {}
    for instruction in dockerfile.arguments:
        for name, default in declared(instruction, known.get, dockerfile.escape):
            value = given.get(name, default)
            if value is not None:
                known[name] = value
    return known


def declared(instruction: Instruction, lookup: Lookup, escape: str) -> list[tuple[str, str | None]]:
    """Read an ARG. DockerfileError."""
    found: list[tuple[str, str | None]] = []
    for word in split(instruction.rest, escape):
        name, equals, default = word.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise DockerfileError(instruction.line, f"{name[:60]!r} is no name of a variable")
        found.append((name, expand(default, lookup, escape, instruction.line) if equals else None))
    return found


def base_of(dockerfile: Dockerfile, stage: Stage, known: Mapping[str, str]) -> str | Stage:
    """Return what a stage starts from: an earlier stage, or the name of an image. DockerfileError."""
    name = expand(stage.base, known.get, dockerfile.escape, stage.line)
    if not name:
        raise DockerfileError(stage.line, "FROM names no image")
    for earlier in reversed(dockerfile.stages[: stage.number]):
        if earlier.name == name.lower():
            return earlier
    return name


def needed(dockerfile: Dockerfile, target: str | None, known: Mapping[str, str]) -> list[Stage]:
    """Return the stages that a target takes, in order. DockerfileError."""
    pending, found = [dockerfile.stage(target)], dict[int, Stage]()
    while pending:
        stage = pending.pop()
        if stage.number in found:
            continue
        found[stage.number] = stage
        base = base_of(dockerfile, stage, known)
        if isinstance(base, Stage):
            pending.append(base)
        names = [instruction.flags["from"] for instruction in stage.body if "from" in instruction.flags]
        pending += [source for name in names if (source := dockerfile.find(name, stage.number))]
    return [found[number] for number in sorted(found)]


def images(dockerfile: Dockerfile, target: str | None, given: Mapping[str, str]) -> list[str]:
    """Return the names of the images that a target takes. DockerfileError."""
    known = arguments(dockerfile, given)
    names: dict[str, None] = {}
    for stage in needed(dockerfile, target, known):
        base = base_of(dockerfile, stage, known)
        if isinstance(base, str) and base != SCRATCH:
            names[base] = None
        for instruction in stage.body:
            source = instruction.flags.get("from")
            if source is not None and dockerfile.find(source, stage.number) is None:
                names[source] = None
    return list(names)
