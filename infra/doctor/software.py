"""Checks of the programs and files a node needs."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.config import LauncherConfig
from infra.doctor.findings import Finding, fail, ok, warn
from infra.setup import guest
from infra.setup.places import base_image_path, guest_path
from infra.setup.progress import output_of
from infra.setup.runsc import refusal, version_of

_TOOLS: Final = {"nft": "nftables", "ip": "iproute2", "mkfs.erofs": "erofs-utils"}
_OLDEST_EROFS: Final = (1, 5)


def programs(_config: LauncherConfig) -> Iterator[Finding]:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        yield fail("tools", f"missing: {', '.join(missing)}", f"apt-get install {' '.join(missing)}")
    else:
        yield ok("tools", ", ".join(_TOOLS))
    said = output_of(["mkfs.erofs", "--version"]) or output_of(["mkfs.erofs", "-V"])
    if said:
        yield erofs(said)


def erofs(said: str) -> Finding:
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is not None and (int(found[1]), int(found[2])) >= _OLDEST_EROFS:
        return ok("erofs-utils", found[0])
    return warn(
        "erofs-utils", f"{found[0] if found else 'unknown'}: images may not be readable", "install 1.5 or newer"
    )


def runsc_checks(config: LauncherConfig) -> Iterator[Finding]:
    binary = config.runsc_path
    said = output_of([str(binary), "--version"])
    yield runsc_version(binary, version_of(said) if said else None)
    if said:
        # The list of flags is written to standard error.
        flags = subprocess.run([str(binary), "flags"], capture_output=True, text=True, check=False)
        yield runsc_features(flags.stdout + flags.stderr)
    on_path = shutil.which("runsc")
    other = output_of([on_path, "--version"]) if on_path else None
    why_not = refusal(version_of(other) or "unknown") if other else None
    if why_not is not None:
        yield warn("runsc on PATH", f"{on_path} is not used: {why_not}", "remove that package")


def runsc_version(binary: Path, version: str | None) -> Finding:
    if version is None:
        return fail("runsc", f"{binary} is missing or does not run", "make setup")
    why_not = refusal(version)
    if why_not is not None:
        return fail("runsc", why_not, "make setup provides one that is new enough")
    return ok("runsc", version)


def runsc_features(flags: str) -> Finding:
    missing = [flag for flag in ("allow-suid", "overlay2", "systrap") if flag not in flags]
    if missing:
        return fail("runsc features", f"this runsc lacks {', '.join(missing)}", "make setup provides one that has them")
    return ok("runsc features", "overlay2, systrap, allow-suid")


def made_checks(config: LauncherConfig) -> Iterator[Finding]:
    binary = guest_path(config.cache_dir)
    yield built_guest(
        binary.resolve().parent.name if binary.exists() else None,
        guest.sources_hash(guest.SOURCES) if guest.SOURCES.exists() else None,
    )
    image = base_image_path(config.cache_dir)
    if image.exists():
        yield ok("base image", f"{image.resolve().name}, {image.stat().st_size >> 20} MiB")
    else:
        yield fail("base image", "not made yet", "make setup")


def built_guest(have: str | None, want: str | None) -> Finding:
    if have is None:
        return fail("guest", "not built yet", "make setup")
    if want is not None and have != want:
        return warn("guest", f"{have} is built, the sources are {want}", "make guest")
    return ok("guest", have)
