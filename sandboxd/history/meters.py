"""The host's meters of sandboxes: control groups, the router's ends of slots, and the files their writes go to."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from sandboxd.history.sampler import Sampled
from sandboxd.history.samples import Reading
from sandboxd.network.base import Network
from sandboxd.runtime.base import Runtime

_BLOCK_BYTES: Final = 512
_STALE_SECONDS: Final = 1.0

Counters = dict[str, tuple[int, int]]


class HostMeters:
    """Reads them. Not for two threads at once."""

    def __init__(self, runtime: Runtime, network: Network, upper_dir: Path | None) -> None:
        """`upper_dir`: where sandboxes write; None: nowhere."""
        self._runtime = runtime
        self._network = network
        self._upper_dir = upper_dir
        self._counters: Counters = {}
        self._before: Counters = {}
        self._read_at = -_STALE_SECONDS
        self._looks = 0
        self._files: dict[str, Path] = {}

    def cpu(self, sandbox: Sampled) -> float | None:
        used = self._runtime.cpu_used_seconds(sandbox.handle)
        return None if used is None else max(0.0, used - sandbox.cpu_before_seconds)

    def reading(self, sandbox: Sampled, at_ms: int) -> Reading | None:
        usage = self._runtime.usage(sandbox.handle)
        if usage is None:
            return None
        egress, ingress = self._counters.get(sandbox.interface or "", (0, 0))
        return Reading(
            at_ms=at_ms,
            cpu_used_seconds=max(0.0, usage.cpu_used_seconds - sandbox.cpu_before_seconds),
            memory_used=usage.memory_used_bytes,
            memory_cache=self._runtime.cached_bytes(sandbox.handle),
            memory_limit=usage.memory_limit_bytes,
            disk_used=self._written(sandbox),
            processes=sandbox.processes,
            egress=egress,
            ingress=ingress,
        )

    def network(self) -> None:
        now = time.monotonic()
        if now - self._read_at >= _STALE_SECONDS:
            self._before, self._counters = self._counters, self._network.counters()
            self._read_at = now
            self._looks += 1

    def base(self, sandbox: Sampled) -> tuple[int, int]:
        """Return the counters at the look before, when the slot was at rest.

        At an agent's first look that is not known of what an earlier agent started: then it counts from now on.
        """
        counters = self._before if self._looks > 1 else self._counters
        return counters.get(sandbox.interface or "", (0, 0))

    def forget(self, sandbox_ids: set[str]) -> None:
        for sandbox_id in sandbox_ids:
            self._files.pop(sandbox_id, None)

    def _written(self, sandbox: Sampled) -> int:
        """Return what a sandbox's writes take on disk: the sentry's file has no name, only a descriptor."""
        if self._upper_dir is None:
            return 0
        known = self._files.get(sandbox.id)
        for path in () if known is None else (known,):
            with suppress(OSError):
                if _is_its(path, self._upper_dir, sandbox.handle):
                    return path.stat().st_blocks * _BLOCK_BYTES
        for pid in sandbox.pids:
            with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
                for entry in entries:
                    path = Path(entry.path)
                    if _is_its(path, self._upper_dir, sandbox.handle):
                        self._files[sandbox.id] = path
                        return path.stat().st_blocks * _BLOCK_BYTES
        return 0


def _is_its(path: Path, upper_dir: Path, handle: str) -> bool:
    # In another mount namespace the path may begin anywhere; where it ends is enough, on the same disk.
    with suppress(OSError):
        if path.readlink().parts[-3:-1] == (upper_dir.name, handle):
            return path.stat().st_dev == upper_dir.stat().st_dev
    return False
