"""The raw yardstick: a bare exec over a sandbox's control socket, as little program as can be.

The protocol is runsc's urpc: one JSON object each way, descriptors beside the first bytes.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

_ALL_STDIO = 3
_CHUNK = 65536
_CAPS = 0xA80425FB
"""The capability mask containers get by default; without a mask uid 0 would have all of them."""


def call(control_socket: Path, method: str, argument: object, descriptors: list[int] | None = None) -> Any:
    """Make one call and return its result; RuntimeError with the sentry's words if it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        directory = os.open(control_socket.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # A socket path is limited to 107 bytes; this one is not.
            connection.connect(f"/proc/self/fd/{directory}/{control_socket.name}")
        finally:
            os.close(directory)
        request = json.dumps({"method": method, "arg": argument}).encode()
        sent = socket.send_fds(connection, [request], descriptors or [])
        connection.sendall(request[sent:])
        answer = b""
        while True:
            answer += connection.recv(_CHUNK)
            try:
                value, _ = json.JSONDecoder().raw_decode(answer.decode())
            except ValueError:
                continue
            if not value["success"]:
                raise RuntimeError(value["err"])
            return value["result"]


def run(control_socket: Path, sandbox_id: str, argv: list[str]) -> tuple[int, bytes]:
    """Run a program inside and return its exit code and what it wrote."""
    read_end, write_end = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        pid = call(
            control_socket,
            "containerManager.ExecuteAsync",
            {
                "argv": argv,
                "envv": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "wd": "/",
                "KUID": 0,
                "KGID": 0,
                "Capabilities": {
                    "PermittedCaps": _CAPS,
                    "InheritableCaps": 0,
                    "EffectiveCaps": _CAPS,
                    "BoundingCaps": _CAPS,
                    "AmbientCaps": 0,
                },
                "GuestFDs": list(range(_ALL_STDIO)),
                "ContainerID": sandbox_id,
            },
            [null, write_end, write_end],
        )
    finally:
        os.close(null)
        os.close(write_end)
    status = call(control_socket, "containerManager.WaitPID", {"PID": pid, "CID": sandbox_id})
    with os.fdopen(read_end, "rb") as output:
        return (status >> 8) & 0xFF, output.read()
