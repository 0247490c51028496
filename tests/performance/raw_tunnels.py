"""Raw tunnels against a direct connection to the same sandbox: throughput, round trip, and a video stream by UDP.

The client of the tunnel is in a namespace of its own, linked to this machine; that of the direct connection is in the
router namespace, next to the sandbox.
"""

import asyncio
import importlib.util
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from harness import Platform
from network_world import World
from raw_sandbox import RawBox
from report import Row, median
from tunnel_kit import Outside

BYTES: Final = 256 * 1024 * 1024
ROUNDS: Final = 5
TRIPS: Final = 3000
SECONDS, FRAMES, PACKETS = 10, 60, 60
_EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
_STREAM, _CAMERA = 7000, 5004
_SERVER: Final = f"""
import socket, threading
listening = socket.create_server(("0.0.0.0", {_STREAM}))
data = bytes(1 << 20)
def talk(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wanted = connection.recv(1)
    if wanted == b"d":
        for _ in range({BYTES} >> 20):
            connection.sendall(data)
    elif wanted == b"u":
        left = {BYTES}
        while left:
            left -= len(connection.recv(1 << 20))
        connection.sendall(b"k")
    else:
        while byte := connection.recv(1):
            connection.sendall(byte)
    connection.close()
while True:
    threading.Thread(target=talk, args=(listening.accept()[0],)).start()
"""

Connect = Callable[[], socket.socket]


def _down(connect: Connect) -> float:
    """MB/s out of the sandbox."""
    room = bytearray(1 << 20)
    with connect() as client:
        begun = time.perf_counter()
        client.sendall(b"d")
        left = BYTES
        while left:
            left -= client.recv_into(room)
        return BYTES / (time.perf_counter() - begun) / 1e6


def _up(connect: Connect) -> float:
    """MB/s into the sandbox."""
    data = bytes(1 << 20)
    with connect() as client:
        begun = time.perf_counter()
        client.sendall(b"u")
        for _ in range(BYTES >> 20):
            client.sendall(data)
        client.recv(1)
        return BYTES / (time.perf_counter() - begun) / 1e6


def _trips(connects: list[Connect]) -> list[float]:
    """Microseconds of one byte there and back, p50 each, in turn."""
    clients = [connect() for connect in connects]
    try:
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(b"p")
        taken: list[list[float]] = [[] for _ in clients]
        for _ in range(TRIPS):
            for client, times in zip(clients, taken, strict=True):
                begun = time.perf_counter()
                client.sendall(b".")
                client.recv(1)
                times.append((time.perf_counter() - begun) * 1e6)
        return [median(times) for times in taken]
    finally:
        for client in clients:
            client.close()


def _watched(pin: Path, address: str, port: int) -> Any:
    """What the example's program measures, by a program in a namespace."""
    spec = importlib.util.spec_from_file_location("stream_video", _EXAMPLES / "stream_video.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return World.do(pin, lambda: module.watch((address, port), SECONDS * FRAMES, FRAMES, PACKETS))


def _served(platform: Platform) -> dict[str, Any]:
    wanted = [{"port": _STREAM, "kind": "tcp"}, {"port": _CAMERA, "kind": "udp"}]
    sandbox = platform.create(tunnels=wanted, resources={"cpus": 2})
    path = f"/v1/sandboxes/{sandbox['id']}"
    camera = (_EXAMPLES / "video-stream" / "camera.py").read_bytes()
    platform.http.put(f"{path}/files", params={"path": "/tmp/camera.py"}, content=camera).raise_for_status()
    for argv in (["python3", "-c", _SERVER], ["python3", "/tmp/camera.py", str(_CAMERA)]):
        platform.http.post(f"{path}/processes", json={"argv": argv}).raise_for_status()
    for port in (_STREAM, _CAMERA):
        platform.http.get(f"{path}/ports", params={"port": port, "wait_seconds": 60}).raise_for_status()
    return sandbox


def _measure(platform: Platform) -> list[Row]:
    sandbox = _served(platform)
    with platform.node_http() as node:
        inner = node.get(f"/node/v1/sandboxes/{sandbox['id']}").json()["address"]
    router = platform.config.runtime_dir / "netns" / "router"
    public = {each["kind"]: each["public_port"] for each in sandbox["tunnels"]}
    with tempfile.TemporaryDirectory() as directory, Outside(Path(directory) / "outside") as outside:
        address = str(outside.host.ip)

        def direct() -> socket.socket:
            return World.do(router, lambda: socket.create_connection((inner, _STREAM), 20))

        def tunnel() -> socket.socket:
            return World.do(outside.pin, lambda: socket.create_connection((address, public["tcp"]), 20))

        rates: dict[str, tuple[list[float], list[float]]] = {"out of": ([], []), "into": ([], [])}
        for number in range(ROUNDS + 1):
            for way, act in (("out of", _down), ("into", _up)):
                ours, theirs = act(tunnel), act(direct)
                if number:  # the first warms both up
                    rates[way][0].append(ours)
                    rates[way][1].append(theirs)
        trips: list[list[float]] = [_trips([tunnel, direct]) for _ in range(3)]
        video = _watched(outside.pin, address, public["udp"])
        beside = _watched(router, inner, _CAMERA)
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}?grace_seconds=0").raise_for_status()
    rows = [
        Row(
            name=f"raw tunnel, TCP, {way} a sandbox",
            unit="MB/s",
            value=median(ours),
            baseline=median(theirs),
            baseline_name="a connection from the router namespace to the same sandbox",
            limit=0.95,
            more_is_better=True,
            note=f"p50 of {ROUNDS} in turn, {BYTES >> 20} MiB each",
        )
        for way, (ours, theirs) in rates.items()
    ]
    rows.append(
        Row(
            name="raw tunnel, TCP, one byte there and back",
            unit="µs",
            value=median([ours for ours, _ in trips]),
            baseline=median([theirs for _, theirs in trips]),
            baseline_name="a connection from the router namespace to the same sandbox",
            limit=1.05,
            note=f"p50 of {TRIPS}, in turn; p50 of 3 such",
        )
    )
    rows.append(
        Row(
            name=f"raw tunnel, UDP: {FRAMES} frames/s of {PACKETS} packets of 1,500 bytes, lost",
            unit=f"packets of {video.sent}",
            value=video.lost,
            limit=0,
            note=(
                f"{SECONDS} s, {video.megabits_per_second} Mbit/s; jitter {video.jitter_ms} ms, on the way "
                f"{video.way_p50_ms} ms (p50), {video.way_p99_ms} ms (p99); direct: {beside.lost} lost, jitter "
                f"{beside.jitter_ms} ms, {beside.way_p50_ms} ms, {beside.way_p99_ms} ms"
            ),
        )
    )
    return rows


async def tunnels(platform: Platform, _: RawBox) -> list[Row]:
    """Raw tunnels."""
    return await asyncio.to_thread(_measure, platform)
