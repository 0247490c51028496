"""Collects what there is of one sandbox into one file. What cannot be had is named in it, and the rest goes on."""

import base64
import io
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from infra import doctor
from infra.config import LauncherConfig
from infra.launcher import account, as_user, logs, node_socket, rotation, told, units, untrusted
from infra.launcher.account import LauncherError
from infra.launcher.told import UntoldError
from infra.launcher.untrusted import UntrustedError
from infra.setup.places import guest_path
from infra.setup.progress import output_of
from infra.support.scrub import Scrubber
from sandboxd.contract.ids import is_id

_MOST_RECORD_BYTES: Final = 1 << 20
_MOST_LEDGER_BYTES: Final = 1 << 30
_MOST_LOG_BYTES: Final = 4 << 20
_MOST_JOURNAL_LINES: Final = 200_000
_MOST_FAILURE_BYTES: Final = 1 << 20
_RECORD_SECONDS: Final = 30
_MOST_KEYS: Final = 64 * 1024

Collect = Callable[[], Iterator[tuple[str, Any]]]


def write(config: LauncherConfig, env: Mapping[str, str], sandbox_id: str, target: Path) -> list[str]:
    """Write the bundle of a sandbox, readable by root alone; returns the names in it. LauncherError."""
    account.require_root()
    if not is_id("sbx", sandbox_id):
        raise LauncherError(f"{sandbox_id!r:.60} is no sandbox's id", "give one such as sbx…, from the API or a log")
    scrubber = Scrubber(_secrets(config))
    files = dict(_collected(config, env, sandbox_id, scrubber))
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LauncherError(f"{target} cannot be made: {error.strerror}", "choose another name") from error
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{sandbox_id}/{name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
            archive.addfile(member, io.BytesIO(content))
    return list(files)


def _collected(
    config: LauncherConfig, env: Mapping[str, str], sandbox_id: str, scrubber: Scrubber
) -> Iterator[tuple[str, bytes]]:
    """Yield each file of the bundle, without secrets."""
    missing: dict[str, str] = {}
    for name, collect in (
        ("record.json", lambda: _record(config, env, sandbox_id)),
        ("ledger.json", lambda: _ledger(config, sandbox_id)),
        ("node.json", lambda: _node(config, sandbox_id)),
        ("failure.json", lambda: _failure(config, sandbox_id)),
        ("api.log", lambda: lines_naming(config, "api", sandbox_id)),
        ("node.log", lambda: lines_naming(config, "node", sandbox_id)),
        ("machine.json", lambda: _machine(config)),
        ("doctor.json", lambda: [finding._asdict() for finding in doctor.examine(config)]),
    ):
        try:
            found: Any = collect()
        except Exception as error:  # noqa: BLE001 - a bundle is made when things are broken
            missing[name] = scrubber.text(f"{type(error).__name__}: {error}")[:500]
            continue
        if isinstance(found, str):
            yield name, scrubber.text(found).encode()
        else:
            yield name, json.dumps(scrubber.document(found), indent=1, default=str).encode()
    yield "missing.json", json.dumps(missing, indent=1).encode()


def _secrets(config: LauncherConfig) -> Iterator[str]:
    """Yield the installation's own secrets in every form they could be written in."""
    with suppress(UntoldError):
        yield told.key(config.key_path)
    raw: list[bytes] = []
    with suppress(OSError):
        raw.append((config.data_dir / "node.key").read_bytes())
    with suppress(OSError, UntrustedError, LauncherError):
        owner = account.ensure_account(config.api_user)
        raw.append(untrusted.content(config.api_data_dir / "secret", owner.pw_uid, 64))
        for name, member in (("secret-keys", "key"), ("token-keys", "seed")):
            with suppress(OSError, UntrustedError, ValueError, KeyError, TypeError):
                held = untrusted.content(config.api_data_dir / name, owner.pw_uid, _MOST_KEYS)
                raw += [base64.b64decode(row[member]) for row in json.loads(held)["keys"]]
    for secret in raw:
        yield secret.hex()
        yield base64.b64encode(secret).decode()
        yield base64.urlsafe_b64encode(secret).decode().rstrip("=")


def _record(config: LauncherConfig, env: Mapping[str, str], sandbox_id: str) -> Any:
    """Return the api's record, read by a child that is the api's user: its database is not root's to trust."""
    database = str(config.api_data_dir / "api.db")
    return json.loads(
        as_user.run(
            config,
            env,
            "infra.support.record",
            database,
            sandbox_id,
            most_bytes=_MOST_RECORD_BYTES,
            seconds=_RECORD_SECONDS,
        )
    )


def _ledger(config: LauncherConfig, sandbox_id: str) -> Any:
    """Return the node's record."""
    try:
        content = node_socket.ask(config.node_socket, "/node/v1/ledger", most_bytes=_MOST_LEDGER_BYTES)
    except node_socket.NodeSilentError:
        path = config.data_dir / "ledger.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)) as ledger:
            return _row(ledger, sandbox_id)
    with closing(sqlite3.connect(":memory:")) as ledger:
        ledger.deserialize(content)
        return _row(ledger, sandbox_id)


def _row(ledger: sqlite3.Connection, sandbox_id: str) -> dict[str, Any] | None:
    ledger.row_factory = sqlite3.Row
    row = ledger.execute("SELECT * FROM sandboxes WHERE id = ?", (sandbox_id,)).fetchone()
    if row is None:
        return None
    record: dict[str, Any] = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row is no mapping
    return record | {name: json.loads(record[name]) for name in ("spec", "report") if record[name]}


def _node(config: LauncherConfig, sandbox_id: str) -> Any:
    target = f"/node/v1/sandboxes/{sandbox_id}"
    return json.loads(node_socket.ask(config.node_socket, target, most_bytes=_MOST_RECORD_BYTES))


def _failure(config: LauncherConfig, sandbox_id: str) -> Any:
    with (config.data_dir / "failures" / f"{sandbox_id}.json").open("rb") as file:
        return json.loads(file.read(_MOST_FAILURE_BYTES))


def lines_naming(config: LauncherConfig, program: str, sandbox_id: str) -> str:
    """Return the lines that name the sandbox, the last of them where they are many."""
    kept: deque[str] = deque()
    size = 0
    for line in _lines(config, program):
        if sandbox_id in line:
            kept.append(logs.printable(line))
            size += len(kept[-1])
            while size > _MOST_LOG_BYTES:
                size -= len(kept.popleft())
    return "".join(f"{line}\n" for line in kept)


def _lines(config: LauncherConfig, program: str) -> Iterator[str]:
    """Yield the lines of a program's logs: the launcher's, or else the journal's."""
    files = rotation.all_of(config.logs_dir / f"{program}.log")
    for path in files:
        yield from logs.lines_of(path)
    journal = shutil.which("journalctl")
    if files or journal is None:
        return
    unit = f"--unit={units.name(config.instance, program)}"
    command = [journal, unit, "--output=cat", "--no-pager", "--quiet", f"--lines={_MOST_JOURNAL_LINES}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        for line in running.stdout or ():
            yield line.decode(errors="replace").rstrip("\n")


def _machine(config: LauncherConfig) -> dict[str, Any]:
    there = next(path for path in (config.data_dir, *config.data_dir.parents) if path.exists())
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": version("sandlot-server"),
        "instance": config.instance,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "system": Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else "",
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "uptime_seconds": time.clock_gettime(time.CLOCK_BOOTTIME),
        "runsc": (output_of([str(config.runsc_path), "--version"]) or "").splitlines(),
        "guest": guest_path(config.cache_dir).resolve().parent.name,
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "load": os.getloadavg(),
        "memory": dict(line.split(":", 1) for line in meminfo[:8]),
        "disk_free_mib": shutil.disk_usage(there).free >> 20,
    }
