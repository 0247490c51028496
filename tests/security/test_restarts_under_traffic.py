"""The programs of the network are killed while all carry traffic: the kernel goes on, and the rest comes back."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import pytest
from test_names_inside import head, naming, outside, programs, talk, zone

from harness import PATIENCE_SECONDS, Platform
from outside_kit import Outside

__all__ = ["naming", "outside", "zone"]  # fixtures

_ECHO = """
import socket, threading
def talk(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
listening = socket.create_server(("0.0.0.0", 7000))
while True:
    threading.Thread(target=talk, args=listening.accept()[:1], daemon=True).start()
"""


class _Stream:
    """One connection through a raw tunnel that is never silent; `echoed` counts what came back as it was sent."""

    def __init__(self, address: str, port: int) -> None:
        self.echoed = 0
        self.error: str | None = None
        self._socket = socket.create_connection((address, port), timeout=PATIENCE_SECONDS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk)

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            self._socket.close()

    def _talk(self) -> None:
        try:
            while not self._over.wait(0.005):
                word = b"%08d" % self.echoed
                self._socket.sendall(word)
                heard = b""
                while len(heard) < len(word):
                    part = self._socket.recv(len(word) - len(heard))
                    if not part:
                        self.error = "it was closed"
                        return
                    heard += part
                if heard != word:
                    self.error = f"{heard!r} came back for {word!r}"
                    return
                self.echoed += 1
        except OSError as error:
            self.error = str(error)


def _named(platform: Platform, name: str) -> int:
    for pid in programs(platform):
        with contextlib.suppress(OSError):
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
    return 0


@pytest.mark.usefixtures("outside", "zone")
def test_raw_tunnels_never_break_and_the_rest_recovers(naming: Platform, outside: Outside) -> None:
    wanted = [{"port": 7000, "kind": "tcp"}, {"port": 8000, "kind": "http", "visibility": "public"}]
    sandbox = naming.create(tunnels=wanted, egress={"mode": "allowlist", "allow": ["pkg.test"]})
    tcp, http = sandbox["tunnels"]
    below = f"/v1/sandboxes/{sandbox['id']}"
    for argv in (["python3", "-c", _ECHO], ["python3", "-m", "http.server", "8000", "--directory", "/etc"]):
        naming.http.post(f"{below}/processes", json={"argv": argv}).raise_for_status()
    for port in (7000, 8000):
        naming.http.get(f"{below}/ports", params={"port": port, "wait_seconds": 60}).raise_for_status()
    stream = _Stream(tcp["host"], tcp["public_port"])

    def gateway_serves() -> bool:
        return httpx.get(f"{http['path_url']}hostname", timeout=PATIENCE_SECONDS).is_success

    def names_serve() -> bool:
        assert talk(naming, sandbox["id"], "evil.test", 80, head("evil.test")) == "gaierror"
        return talk(naming, sandbox["id"], "pkg.test", 80, head("pkg.test")) == "heard"

    victims: list[tuple[str, Callable[[], int]]] = [
        ("proxy", lambda: _named(naming, "proxy")),
        ("resolver", lambda: _named(naming, "resolver")),
        ("gateway", lambda: naming.pid("gateway")),
        ("node", lambda: naming.pid("node")),
    ]
    with stream.running():
        naming.wait_until(gateway_serves, "the gateway serves")
        naming.wait_until(names_serve, "names are served")
        for name, pid_of in victims:
            gone, carried = pid_of(), stream.echoed
            assert gone, name
            os.kill(gone, signal.SIGKILL)
            naming.wait_until(lambda gone=gone, pid_of=pid_of: pid_of() not in {0, gone}, f"another {name} runs")
            naming.wait_ready()
            naming.wait_until(gateway_serves, f"the gateway serves after {name} was killed")
            naming.wait_until(names_serve, f"names are served after {name} was killed")
            naming.wait_until(lambda carried=carried: stream.error or stream.echoed > carried, "the stream goes on")
            assert stream.error is None, name
    assert stream.error is None
    assert {address for address, _, _ in outside.world.heard} == {outside.one}
