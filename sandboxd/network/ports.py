"""The public ports of a node's raw tunnels: drawn at random, kept from the host's programs, not used again at once."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Final

import structlog

from sandboxd.network.base import NetworkError, NoPublicPortError

REST_SECONDS: Final = 240.0
"""After a tunnel: whoever still sends to it must not meet the next one. Twice TCP's own longest wait."""

_log = structlog.get_logger(__name__)


class PublicPorts:
    """Ports of the host, each for one tunnel of either protocol. Used in a thread of the host's namespace alone.

    A port is held by two sockets that nobody reads: so another program, or another node, that wants it is refused.
    Ports at rest are in a file, because a restart must not forget them. Times are boot time.
    """

    def __init__(
        self, ports: range, resting: Path, now: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    ) -> None:
        self._ports = ports
        self._path = resting
        self._now = now
        self._held: dict[int, list[socket.socket]] = {}
        self._draw = SystemRandom()

    def take(self) -> int:
        """Return a port that nobody has. NoPublicPortError when there is none."""
        resting = self._resting()
        tried: set[int] = set()
        free = [port for port in self._ports if port not in self._held and port not in resting]
        while len(tried) < len(free):
            port = self._draw.choice(free)
            if port in tried:
                continue
            tried.add(port)
            with contextlib.suppress(OSError):
                self._held[port] = _bind(port)
                return port
        raise NoPublicPortError(
            f"all public ports {self._ports.start} to {self._ports.stop - 1} are in use, or were until a moment ago"
        )

    def keep(self, port: int) -> None:
        """Hold the port of a tunnel that an earlier agent opened. Idempotent."""
        if port in self._held:
            return
        self._held[port] = []
        try:
            self._held[port] = _bind(port)
        except OSError as error:
            # The kernel's rules come first: the tunnel works, and the other program hears nothing.
            _log.warning("tunnel_port_taken", port=port, error=str(error))

    def rest(self, port: int) -> None:
        """Give a port back; nobody gets it before its rest is over. Idempotent."""
        sockets = self._held.pop(port, None)
        if sockets is None:
            return
        resting = self._resting()
        resting[port] = self._now() + REST_SECONDS
        self._write(resting)
        for each in sockets:
            each.close()

    def close(self) -> None:
        """Let go of the sockets; the tunnels stay."""
        for sockets in self._held.values():
            for each in sockets:
                each.close()
        self._held.clear()

    def forget(self) -> None:
        """Remove what is on disk. Idempotent."""
        self._path.unlink(missing_ok=True)

    def _resting(self) -> dict[int, float]:
        try:
            found = json.loads(self._path.read_bytes())
            now = self._now()
            return {int(port): float(until) for port, until in found.items() if now < until <= now + REST_SECONDS}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            _log.warning("resting_ports_unreadable", error=str(error))
            return {}

    def _write(self, resting: dict[int, float]) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(resting))
            os.replace(fresh, self._path)  # noqa: PTH105 - the atomic one
        except OSError as error:
            raise NetworkError(f"the ports at rest cannot be written: {error}") from error


def _bind(port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            each = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
            bound.append(each)
            # Were the rules flushed, datagrams would end here: they need no room.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            each.bind(("", port))
    except OSError:
        for each in bound:
            each.close()
        raise
    return bound
