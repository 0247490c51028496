"""What the API says of files, ports, logs and use, as plain data. Unknown fields are kept in `raw`."""

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from sandlot.errors import ProtocolError
from sandlot.models import as_object, integer, number, parse_time, required, text, texts


@dataclass(frozen=True)
class FileInfo:
    """One entry of a sandbox's file system, as it was at one moment."""

    path: str
    """Absolute. A name that is not UTF-8 has its bytes as surrogates, as `os.fsdecode` makes them."""
    name: str
    type: str
    """`file`, `directory`, `symlink`, `fifo`, `socket` or `device`."""
    size_bytes: int
    mode: str
    uid: int | None
    gid: int | None
    owner: str | None
    group: str | None
    modified_at: datetime | None
    symlink_target: str | None
    etag: str | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "FileInfo":
        """Read a FileInfo. ProtocolError if it is none."""
        raw = as_object(value)
        path = path_of(raw)
        return cls(
            path=path,
            name=path.rpartition("/")[2] or "/",
            type=required(raw, "type"),
            size_bytes=integer(raw, "size_bytes") or 0,
            mode=text(raw, "mode") or "",
            uid=integer(raw, "uid"),
            gid=integer(raw, "gid"),
            owner=text(raw, "owner"),
            group=text(raw, "group"),
            modified_at=parse_time(raw.get("modified_at")),
            symlink_target=text(raw, "symlink_target"),
            etag=text(raw, "etag"),
            raw=raw,
        )

    @property
    def is_directory(self) -> bool:
        return self.type == "directory"

    @property
    def is_file(self) -> bool:
        return self.type == "file"


@dataclass(frozen=True)
class FileEvent:
    """One change below a watched path."""

    kind: str
    """`create`, `write`, `remove`, `rename`, `chmod`; `ready` once it watches; `overflow` when some were missed."""
    path: str | None
    to: str | None
    is_directory: bool
    at: datetime | None

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "FileEvent":
        """Read one line of a watch. ProtocolError if it is none."""
        return cls(
            kind=required(raw, "kind"),
            path=path_of(raw) if "path" in raw or "path_base64" in raw else None,
            to=text(raw, "to"),
            is_directory=raw.get("is_directory") is True,
            at=parse_time(raw.get("at")),
        )


@dataclass(frozen=True)
class SecretInfo:
    """A secret, without its value."""

    name: str
    version: int
    env: bool
    """Sandboxes may have it as a variable."""
    hosts: list[str]
    """Where it may be sent."""
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "SecretInfo":
        """Read a secret. ProtocolError if it is none."""
        raw = as_object(value)
        hosts: object = raw.get("hosts")
        return cls(
            name=required(raw, "name"),
            version=integer(raw, "version") or 0,
            env=raw.get("env") is True,
            hosts=[str(each) for each in cast("list[Any]", hosts)] if isinstance(hosts, list) else [],
            raw=raw,
        )


@dataclass(frozen=True)
class Tunnel:
    """A way from outside to a port of a sandbox."""

    id: str
    kind: str
    port: int | None
    """Inside; None: every port that has no tunnel of its own."""
    visibility: str
    allow_cidrs: list[str]
    state: str
    message: str | None
    """What keeps it from working, as far as the node can see."""
    host: str | None
    public_port: int | None
    url: str | None
    path_url: str | None
    """Of an http tunnel, without a name of its own: for programs that resolve no names below `localhost`."""
    in_bytes: int | None
    out_bytes: int | None
    created_at: datetime | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "Tunnel":
        """Read a tunnel. ProtocolError if it is none."""
        raw = as_object(value)
        allowed: object = raw.get("allow_cidrs")
        return cls(
            id=required(raw, "id"),
            kind=required(raw, "kind"),
            port=integer(raw, "port"),
            visibility=text(raw, "visibility") or "",
            allow_cidrs=[str(each) for each in cast("list[Any]", allowed)] if isinstance(allowed, list) else [],
            state=text(raw, "state") or "",
            message=text(raw, "message"),
            host=text(raw, "host"),
            public_port=integer(raw, "public_port"),
            url=text(raw, "url"),
            path_url=text(raw, "path_url"),
            in_bytes=integer(raw, "in_bytes"),
            out_bytes=integer(raw, "out_bytes"),
            created_at=parse_time(raw.get("created_at")),
            raw=raw,
        )

    @property
    def address(self) -> str | None:
        """Where to connect: `host:port`, or the URL of an http tunnel; None where nobody knows yet."""
        if self.host is not None and self.public_port is not None:
            return f"{self.host}:{self.public_port}"
        return self.url


@dataclass(frozen=True)
class Link:
    """An address that opens a port of a sandbox to whoever has it, for a while: the token is in it."""

    url: str = field(repr=False)
    token: str = field(repr=False)
    """The same, for the header `Sandlot-Token`."""
    expires_at: datetime | None


@dataclass(frozen=True)
class Port:
    """A port inside a sandbox on which something listens."""

    port: int
    protocol: str
    address: str | None
    pid: int | None

    @classmethod
    def parse(cls, value: object) -> "Port":
        """Read one item of `ports`. ProtocolError if it is none."""
        raw = as_object(value)
        port = integer(raw, "port")
        if port is None:
            raise ProtocolError("the answer lacks 'port'")
        return cls(port, text(raw, "protocol") or "tcp", text(raw, "address"), integer(raw, "pid"))


@dataclass(frozen=True)
class LogLine:
    """A piece of what the processes of a sandbox wrote, kept beyond its end."""

    at: datetime | None
    process_id: str | None
    kind: str
    data: bytes
    cursor: str | None
    """Where to go on: pass it as `after` to get what follows."""
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "LogLine":
        """Read one line of the logs. ProtocolError if it is none."""
        return cls(
            at=parse_time(raw.get("at")),
            process_id=text(raw, "process_id"),
            kind=required(raw, "kind"),
            data=data_of(raw),
            cursor=text(raw, "cursor"),
            raw=raw,
        )

    @property
    def text(self) -> str:
        """The bytes as text; what is not UTF-8 shows as U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True)
class Decision:
    """What was decided about traffic of a sandbox; equal decisions within ten seconds are one."""

    first_at: datetime | None
    last_at: datetime | None
    count: int
    verdict: str
    """`allow` or `deny`."""
    source: str
    """`policy`, `platform` or `limit`."""
    rule: str | None
    reason: str | None
    name: str | None
    address: str | None
    port: int | None
    protocol: str | None
    via: str
    """Who decided: `resolver`, `proxy` or `kernel`."""
    cursor: str | None
    """Where to go on: pass it as `after` to get what follows."""
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "Decision":
        """Read a Decision. ProtocolError if it is none."""
        raw = as_object(value)
        return cls(
            first_at=parse_time(raw.get("first_at")),
            last_at=parse_time(raw.get("last_at")),
            count=integer(raw, "count") or 0,
            verdict=required(raw, "verdict"),
            source=text(raw, "source") or "",
            rule=text(raw, "rule"),
            reason=text(raw, "reason"),
            name=text(raw, "name"),
            address=text(raw, "address"),
            port=integer(raw, "port"),
            protocol=text(raw, "protocol"),
            via=text(raw, "via") or "",
            cursor=text(raw, "cursor"),
            raw=raw,
        )


@dataclass(frozen=True)
class Sample:
    """What a sandbox used, up to one moment. What is None was not measured."""

    at: datetime | None
    cpu_used_seconds: float | None
    cpu_used_percent: float | None
    cpus: float | None
    memory_used_bytes: int | None
    memory_limit_bytes: int | None
    disk_used_bytes: int | None
    disk_limit_bytes: int | None
    processes: int | None
    egress_bytes: int | None
    ingress_bytes: int | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "Sample":
        """Read a Sample. ProtocolError if it is none."""
        raw = as_object(value)
        return cls(
            at=parse_time(raw.get("at")),
            cpu_used_seconds=number(raw, "cpu_used_seconds"),
            cpu_used_percent=number(raw, "cpu_used_percent"),
            cpus=number(raw, "cpus"),
            memory_used_bytes=integer(raw, "memory_used_bytes"),
            memory_limit_bytes=integer(raw, "memory_limit_bytes"),
            disk_used_bytes=integer(raw, "disk_used_bytes"),
            disk_limit_bytes=integer(raw, "disk_limit_bytes"),
            processes=integer(raw, "processes"),
            egress_bytes=integer(raw, "egress_bytes"),
            ingress_bytes=integer(raw, "ingress_bytes"),
            raw=raw,
        )


@dataclass(frozen=True)
class ArchiveSummary:
    """What unpacking an archive made."""

    files: int
    directories: int
    symlinks: int
    bytes: int

    @classmethod
    def parse(cls, value: object) -> "ArchiveSummary":
        """Read the answer to an upload of a tree. ProtocolError if it is none."""
        raw = as_object(value)
        return cls(*(integer(raw, name) or 0 for name in ("files", "directories", "symlinks", "bytes")))


def path_of(raw: dict[str, Any]) -> str:
    """Return the path of an answer, also one that is not UTF-8."""
    if isinstance(raw.get("path_base64"), str):
        return _base64(raw["path_base64"]).decode(errors="surrogateescape")
    return required(raw, "path")


def data_of(raw: dict[str, Any]) -> bytes:
    """Return the bytes of `text` or `base64`. ProtocolError if neither is there."""
    shown = text(raw, "text")
    return shown.encode() if shown is not None else _base64(raw.get("base64"))


def _base64(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "!", validate=True)
    except ValueError as error:
        raise ProtocolError("a part of the answer is not base64") from error


@dataclass(frozen=True)
class EgressInfo:
    """What a sandbox may reach, and whether that is in force."""

    mode: str
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    generation: int | None
    applied_generation: int | None
    applied_at: datetime | None
    state: str
    """`applied`, `applying`, or `closed`: a change has failed, and nothing is reached until one succeeds."""
    closed_connections: int | None
    """How many connections a change has ended; None where nothing was changed."""
    policy: dict[str, Any] = field(repr=False)
    """The whole policy in canonical form; `set` takes it back."""
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: object) -> "EgressInfo":
        """Read an answer of `egress`. ProtocolError if it is none."""
        raw = as_object(value)
        policy = as_object(raw.get("policy"))
        return cls(
            mode=required(policy, "mode"),
            allow=texts(policy.get("allow")),
            deny=texts(policy.get("deny")),
            generation=integer(raw, "generation"),
            applied_generation=integer(raw, "applied_generation"),
            applied_at=parse_time(raw.get("applied_at")),
            state=required(raw, "state"),
            closed_connections=integer(raw, "closed_connections"),
            policy=policy,
            raw=raw,
        )


@dataclass(frozen=True)
class EgressExplanation:
    """What a policy says of a destination."""

    verdict: str
    """`allow` or `deny`."""
    source: str | None
    rule: str | None
    reason: str | None
    hint: str | None
    raw: dict[str, Any] = field(repr=False)

    @property
    def allowed(self) -> bool:
        return self.verdict == "allow"

    @classmethod
    def parse(cls, value: object) -> "EgressExplanation":
        """Read an explanation. ProtocolError if it is none."""
        raw = as_object(value)
        names = ("source", "rule", "reason", "hint")
        return cls(required(raw, "verdict"), *(text(raw, name) for name in names), raw=raw)
