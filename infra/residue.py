"""What Sandlot has on a host, seen from outside: by looking at the kernel, not by asking the programs.

Doctor names it when nothing should be there, `down` proves that nothing is, and the tests compare before with after.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_DEPTH = 2
"""Below the root: the parents of v2 and of one v1 hierarchy each."""


class Residue(NamedTuple):
    """One thing in the kernel or on disk."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def find(instance: str | None = None, directories: Iterable[Path] = ()) -> set[Residue]:
    """Return what there is of `instance` (None: of any), with mounts and sockets below the given directories."""
    parents = list(_cgroup_parents(instance))
    below = [str(directory) for directory in directories]
    found = {Residue("cgroup", str(child)) for parent in parents for child in (parent, *_below(parent))}
    found |= {Residue("process", text) for text in _processes(instance, below)}
    found |= {Residue("mount", point) for point in _mounts() if _is_below(point, below)}
    found |= {Residue("socket", path) for path in _sockets() if _is_below(path, below)}
    found |= {Residue("link", name) for name in _links() if _matches(name, "sl", instance)}
    found |= {Residue("nft table", name) for name in _tables() if _matches(name, "sandlot_", instance)}
    found |= {Residue("iptables rule", rule) for rule in _rules(instance)}
    return found


def everything() -> set[Residue]:
    """Return everything on this host that could be Sandlot's, for a comparison of before and after.

    Wider than `find`: every mount, link and table, so that what was made under a wrong name is seen too.
    """
    ours = re.compile(r"sandlot|sandboxd|runsc")
    return (
        find()
        | {Residue("mount", point) for point in _mounts()}
        | {Residue("link", name) for name in _links()}
        | {Residue("nft table", name) for name in _tables()}
        | {Residue("socket", path) for path in _sockets() if ours.search(path)}
        | {Residue("process", text) for text in _running_ours()}
    )


def _running_ours() -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith((b"/runsc", b"/guest")) or words[0].startswith(b"runsc-"):
                    yield f"{entry.name} {b' '.join(words).decode(errors='replace')[:100]}"


def _matches(name: str, prefix: str, instance: str | None) -> bool:
    if instance is not None:
        return name == f"{prefix}{instance}"
    return re.fullmatch(f"{prefix}[a-z][a-z0-9]{{0,7}}", name) is not None


def _cgroup_parents(instance: str | None) -> Iterator[Path]:
    pattern = f"sandlot-{instance or '*'}"
    for depth in range(_CGROUP_DEPTH):
        yield from _CGROUP_ROOT.glob("*/" * depth + pattern)


def _below(cgroup: Path) -> Iterator[Path]:
    for directory, names, _ in os.walk(cgroup, onerror=None):
        for name in names:
            yield Path(directory) / name


def _processes(instance: str | None, directories: list[str]) -> Iterator[str]:
    member = re.compile(rf"/sandlot-{instance or '[a-z][a-z0-9]*'}(/|$)", re.MULTILINE)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process may end while it is looked at.
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            ours = member.search((entry / "cgroup").read_text()) is not None
            if ours or (command and any(f"{directory}/" in command for directory in directories)):
                yield f"{entry.name} {command[:100] or (entry / 'comm').read_text().strip()}"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Spaces in names are octal there.
        yield line.split()[4].encode().decode("unicode_escape")


def _sockets() -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8:
            yield fields[7]


def _is_below(path: str, directories: list[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _links() -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir()]


def _tables() -> Iterator[str]:
    for row in _json_of(["nft", "--json", "list", "tables"]).get("nftables", []):
        if "table" in row:
            yield row["table"]["name"]


def _rules(instance: str | None) -> Iterator[str]:
    """Yield rules in iptables' shared chains that name a link of ours."""
    ours = re.compile(rf" sl{instance or '[a-z][a-z0-9]*'}( |$)")
    try:
        done = subprocess.run(["iptables", "-S"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return
    yield from (line for line in done.stdout.splitlines() if ours.search(line))


def _json_of(argv: list[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(argv, capture_output=True, check=False)
    except FileNotFoundError:
        return {}
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout else {}
