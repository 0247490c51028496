"""What a build does, decided before anything is done: stages and steps, each known by a key. Pure.

A key says what a step comes from: the step before it, its own words, what it sees of the environment, and the digest of
the files it takes. Two steps of one key are one step; whose they are is in the first key of a chain.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from sandboxd.builds.globs import PatternError, pattern_parts
from sandboxd.contract import dockerfile as text
from sandboxd.contract.dockerfile import Dockerfile, DockerfileError, Instruction
from sandboxd.contract.images import Build, CopyStep
from sandboxd.contract.images import Step as GivenStep
from sandboxd.images.base import ImageConfig

DEFAULT_BASE: Final = "base"
_SHELL: Final = ("/bin/sh", "-c")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs look in a sandbox whose image says nothing: what `$PATH` is then."""
_VERSION: Final = 1
_ARCHIVE: Final = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)$")
_CHMOD: Final = re.compile(r"0?[0-7]{3,4}")
_NOTED: Final = {
    "HEALTHCHECK": "is not acted on: ask for what you need with a call of your own",
    "VOLUME": "is not acted on: a sandbox's files are its own anyway",
    "STOPSIGNAL": "is not acted on: sandboxes are stopped with SIGTERM",
    "MAINTAINER": "is not acted on: use a LABEL",
}
_PIP: Final = {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
_APT: Final = (
    'apt-get update -q && apt-get install -q -y --no-install-recommends -- "$@" && rm -rf /var/lib/apt/lists/*'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `config` is what the image says after it."""

    text: str
    line: int
    config: ImageConfig
    note: str | None = None
    """What of it is not done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep(Step):
    """A program that runs in a sandbox."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    user: str | None
    cwd: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStep(Step):
    """Files put into the image."""

    sources: tuple[str, ...]
    to: str
    """Absolute; with a slash at its end it is a directory."""
    stage: int | None = None
    image: str | None = None
    """Where they come from; neither: the context."""
    mode: int | None = None
    owner: str | None = None
    extracts: bool = False
    """ADD: an archive would have to be unpacked, and is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryStep(Step):
    """A directory that must be there."""

    path: str


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage, in order."""

    number: int
    name: str | None
    base: str | int | None
    """The name of an image, the number of an earlier stage, or nothing at all."""
    steps: tuple[Step, ...]

    @property
    def config(self) -> ImageConfig | None:
        return self.steps[-1].config if self.steps else None


class Planner:
    """A build that was asked for, read; stages are planned one by one, because each goes on from its base's config."""

    def __init__(self, build: Build) -> None:
        """DockerfileError."""
        self._build = build
        self._dockerfile: Dockerfile | None = None
        self._known: dict[str, str] = {}
        if build.dockerfile is not None:
            self._dockerfile = text.parse(build.dockerfile)
            self._known = text.arguments(self._dockerfile, build.build_args)

    def stages(self) -> list[tuple[int, str | int | None]]:
        """Return the numbers of the stages it takes, and what each is from."""
        if self._dockerfile is None:
            return [(0, self._build.base or DEFAULT_BASE)]
        found: list[tuple[int, str | int | None]] = []
        for stage in text.needed(self._dockerfile, self._build.target, self._known):
            base = text.base_of(self._dockerfile, stage, self._known)
            found.append((stage.number, _base(base)))
        return found

    def plan(self, number: int, config: ImageConfig) -> PlannedStage:
        """Plan one stage on an image with this config. DockerfileError."""
        if self._dockerfile is None:
            steps = _from_steps(self._build.steps or (), config)
            return PlannedStage(0, None, self._build.base or DEFAULT_BASE, tuple(steps))
        stage = self._dockerfile.stages[number]
        base = text.base_of(self._dockerfile, stage, self._known)
        reading = _Reading(self._dockerfile, stage.number, self._build.build_args, self._known, config)
        return PlannedStage(number, stage.name, _base(base), tuple(reading.step(each) for each in stage.body))


def _base(base: "str | text.Stage") -> str | int | None:
    if isinstance(base, text.Stage):
        return base.number
    return None if base == text.SCRATCH else base


def images(build: Build) -> list[str]:
    """Return the names of all images a build takes. DockerfileError."""
    if build.dockerfile is None:
        return [build.base or DEFAULT_BASE]
    return text.images(text.parse(build.dockerfile), build.target, build.build_args)


@dataclass(slots=True)
class _Reading:
    """One stage of a Dockerfile, read instruction by instruction."""

    dockerfile: Dockerfile
    number: int
    given: Mapping[str, str]
    known: Mapping[str, str]
    config: ImageConfig
    shell: tuple[str, ...] = _SHELL
    has_cmd: bool = False
    arguments: dict[str, str] = field(default_factory=dict[str, str])

    def step(self, instruction: Instruction) -> Step:
        keyword = instruction.keyword
        if keyword in _NOTED:
            return self._plain(instruction, f"{keyword} {_NOTED[keyword]}")
        if keyword == "RUN":
            return self._run(instruction)
        if keyword in {"COPY", "ADD"}:
            return self._copy(instruction)
        if keyword == "WORKDIR":
            return self._workdir(instruction)
        if keyword == "ONBUILD":
            raise DockerfileError(instruction.line, "ONBUILD is not supported: images here have no triggers")
        self._set(instruction)
        return self._plain(instruction, None)

    def _plain(self, instruction: Instruction, note: str | None) -> Step:
        return Step(text=instruction.text, line=instruction.line, config=self.config, note=note)

    def _lookup(self, name: str) -> str | None:
        return self.config.env.get(name, self.arguments.get(name, _PATH if name == "PATH" else None))

    def _expand(self, words: str, line: int) -> str:
        return text.expand(words, self._lookup, self.dockerfile.escape, line)

    def _set(self, instruction: Instruction) -> None:
        config, line = self.config, instruction.line
        match instruction.keyword:
            case "ENV":
                self.config = replace(config, env=config.env | self._pairs(instruction))
            case "LABEL":
                self.config = replace(config, labels=config.labels | self._pairs(instruction))
            case "ARG":
                self._argument(instruction)
            case "USER":
                self.config = replace(config, user=self._user(instruction))
            case "EXPOSE":
                ports = tuple(self._expand(word, line) for word in instruction.rest.split())
                self.config = replace(config, ports=tuple(dict.fromkeys((*config.ports, *ports))))
            case "SHELL":
                self.shell = tuple(instruction.words() or ())
                if not self.shell:
                    raise DockerfileError(line, 'SHELL takes a JSON list, such as ["/bin/bash", "-c"]')
            case "CMD":
                self.config = replace(config, cmd=self._command(instruction))
                self.has_cmd = True
            case _:  # ENTRYPOINT
                cmd = config.cmd if self.has_cmd else ()
                self.config = replace(config, entrypoint=self._command(instruction), cmd=cmd)

    def _pairs(self, instruction: Instruction) -> dict[str, str]:
        return dict(text.pairs(instruction, self._lookup, self.dockerfile.escape))

    def _argument(self, instruction: Instruction) -> None:
        for name, default in text.declared(instruction, self._lookup, self.dockerfile.escape):
            value = self.given.get(name, default if default is not None else self.known.get(name))
            if value is not None:
                self.arguments[name] = value

    def _user(self, instruction: Instruction) -> str:
        user = self._expand(instruction.rest, instruction.line)
        if not re.fullmatch(r"[^\x00\s/]{1,64}", user):
            raise DockerfileError(instruction.line, f"{user[:60]!r} is no user")
        return user

    def _command(self, instruction: Instruction) -> tuple[str, ...]:
        words = instruction.words()
        return (*self.shell, instruction.rest) if words is None else tuple(words)

    def _run(self, instruction: Instruction) -> RunStep:
        words = instruction.words() if instruction.body is None else None
        if words is None:
            script = instruction.script
            if script is None:
                script = instruction.rest if instruction.body is None else f"{instruction.rest}\n{instruction.body}"
            words = [*self.shell, script]
        if not words or not words[0]:
            raise DockerfileError(instruction.line, "RUN names no program")
        return RunStep(
            text=instruction.text,
            line=instruction.line,
            config=self.config,
            argv=tuple(words),
            env=self.arguments | self.config.env,
            user=self.config.user,
            cwd=self.config.cwd or "/",
        )

    def _workdir(self, instruction: Instruction) -> DirectoryStep:
        path = self._absolute(self._expand(instruction.rest, instruction.line))
        self.config = replace(self.config, cwd=path)
        return DirectoryStep(text=instruction.text, line=instruction.line, config=self.config, path=path)

    def _absolute(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.config.cwd or "/", path))

    def _copy(self, instruction: Instruction) -> FileStep:
        line, flags = instruction.line, instruction.flags
        words = instruction.words() or text.split(instruction.rest, self.dockerfile.escape)
        words = [self._expand(word, line) for word in words]
        if len(words) < 2:
            raise DockerfileError(line, f"{instruction.keyword} takes sources and a destination")
        *sources, to = words
        if len(sources) > 1 and not to.endswith("/"):
            raise DockerfileError(line, "with several sources the destination must end with a slash")
        if instruction.keyword == "ADD":
            _check_added(sources, line)
        mode = self._expand(flags["chmod"], line) if "chmod" in flags else None
        if mode is not None and not _CHMOD.fullmatch(mode):
            raise DockerfileError(line, f"--chmod={mode[:20]} is no octal mode")
        stage = self.dockerfile.find(flags["from"], self.number) if "from" in flags else None
        return FileStep(
            text=instruction.text,
            line=line,
            config=self.config,
            sources=_checked(sources, line),
            to=_destination(self.config.cwd, to),
            stage=None if stage is None else stage.number,
            image=flags.get("from") if stage is None else None,
            mode=None if mode is None else int(mode, 8),
            owner=self._expand(flags["chown"], line) if "chown" in flags else None,
            extracts=instruction.keyword == "ADD",
        )


def _destination(cwd: str | None, to: str) -> str:
    """Return where a copy goes: absolute, with a slash at its end if it says that it is a directory."""
    absolute = posixpath.normpath(posixpath.join(cwd or "/", to))
    is_directory = to.endswith("/") or posixpath.basename(to) in {".", ".."}
    return f"{absolute}/" if is_directory and absolute != "/" else absolute


def _check_added(sources: Sequence[str], line: int) -> None:
    for source in sources:
        if "://" in source or source.startswith("git@"):
            raise DockerfileError(
                line, "ADD from elsewhere is not supported: fetch it with RUN, or put it into the context"
            )
        if _ARCHIVE.search(source):
            raise DockerfileError(line, "ADD of an archive is not supported: COPY it and unpack it with RUN")


def _checked(sources: Sequence[str], line: int) -> tuple[str, ...]:
    for source in sources:
        try:
            pattern_parts(source)
        except PatternError as error:
            raise DockerfileError(line, str(error)) from error
    return tuple(sources)


def _from_steps(steps: Sequence[GivenStep], config: ImageConfig) -> list[Step]:
    """Compile steps in code. DockerfileError: `line` is the number of the step."""
    planned: list[Step] = []
    for number, given in enumerate(steps, 1):
        step = _from_step(given, number, config)
        config = step.config
        planned.append(step)
    return planned


def _from_step(given: GivenStep, line: int, config: ImageConfig) -> Step:
    if given.copy_ is not None:
        return _copied(given.copy_, line, config)
    if given.env is not None:
        config = replace(config, env=config.env | given.env)
        return Step(text=f"env {' '.join(given.env)}", line=line, config=config)
    if given.user is not None:
        return Step(text=f"user {given.user}", line=line, config=replace(config, user=given.user))
    if given.workdir is not None:
        path = posixpath.normpath(posixpath.join(config.cwd or "/", given.workdir))
        return DirectoryStep(text=f"workdir {path}", line=line, config=replace(config, cwd=path), path=path)
    return _program(given, line, config)


def _program(given: GivenStep, line: int, config: ImageConfig) -> RunStep:
    """Installing is root's work, whoever the image's user is."""
    user, env = "0", dict(config.env)
    if given.pip_install is not None:
        shown, env = f"pip_install {' '.join(given.pip_install)}", env | _PIP
        argv = ["python3", "-m", "pip", "install", "--no-cache-dir", "--no-input", *given.pip_install]
    elif given.apt_install is not None:
        shown, env = f"apt_install {' '.join(given.apt_install)}", env | {"DEBIAN_FRONTEND": "noninteractive"}
        argv = [*_SHELL, _APT, "apt_install", *given.apt_install]
    elif given.npm_install is not None:
        shown = f"npm_install {' '.join(given.npm_install)}"
        argv = ["npm", "install", "--global", "--no-fund", "--no-audit", *given.npm_install]
    else:
        run = given.run or ""
        argv = [*_SHELL, run] if isinstance(run, str) else list(run)
        shown = f"run {run if isinstance(run, str) else ' '.join(run)}"
        user = config.user
    return RunStep(
        text=shown[:400].replace("\n", " "),
        line=line,
        config=config,
        argv=tuple(argv),
        env=env,
        user=user,
        cwd=config.cwd or "/",
    )


def _copied(copy: CopyStep, line: int, config: ImageConfig) -> FileStep:
    return FileStep(
        text=f"copy {copy.source} {copy.to}",
        line=line,
        config=config,
        sources=_checked([copy.source], line),
        to=_destination(config.cwd, copy.to),
        mode=None if copy.mode is None else int(copy.mode, 8),
        owner=copy.owner,
    )


def first_key(project_id: str, base: str | None) -> str:
    """Return the key that a chain of steps begins with: private content is never another project's."""
    return _digest({"version": _VERSION, "project": project_id, "image": base})


def next_key(before: str, step: Step, inputs: Sequence[str] = ()) -> str:
    """Return the key of a step. `inputs`: digests of what it takes."""
    said: dict[str, Any] = {"before": before, "inputs": list(inputs)}
    match step:
        case RunStep():
            said |= {"run": step.argv, "env": dict(step.env), "user": step.user, "cwd": step.cwd}
        case FileStep():
            said |= {"copy": step.sources, "to": step.to, "mode": step.mode, "owner": step.owner}
        case DirectoryStep():
            said |= {"directory": step.path}
        case _:
            return before
    return _digest(said)


def config_json(config: ImageConfig) -> bytes:
    """Return a config as it tells images of one tree apart."""
    return json.dumps(asdict(config), sort_keys=True).encode()


def _digest(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
