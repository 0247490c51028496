"""Raw tunnels against a direct connection to the same sandbox: throughput, round trip, and a video stream by UDP.

The client is in a namespace of its own, linked to this machine. The direct connection is a plain route over the same
links, let through ahead of every rule; what those links cost, the same from the router namespace shows.
"""

import asyncio
import importlib.util
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness import Platform
from netpolicy.compile import ROUTER_TABLE
from network_world import World
from raw_sandbox import RawBox
from report import Row, median
from sandboxd.contract.messages import Resources
from sandboxd.network.base import Slot
from sandboxd.network.links import Links
from tunnel_kit import Outside, tunnel

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


@dataclass(frozen=True, slots=True)
class Ways:
    """Ways to one sandbox: its tunnels, a plain route over the same links, and from the namespace next to it."""

    outside: Outside
    router: Path
    inner: str
    public: dict[str, int]

    def tunnel(self) -> socket.socket:
        address = str(self.outside.host.ip), self.public["tcp"]
        return World.do(self.outside.pin, lambda: socket.create_connection(address, 20))

    def routed(self) -> socket.socket:
        return World.do(self.outside.pin, lambda: socket.create_connection((self.inner, _STREAM), 20))

    def next_to_it(self) -> socket.socket:
        return World.do(self.router, lambda: socket.create_connection((self.inner, _STREAM), 20))


async def _served(raw: RawBox) -> tuple[Slot, dict[str, int]]:
    """A sandbox of runsc alone, because nothing repairs its tables while the plain route is let through."""
    sandbox = await raw.create(Resources(cpus=2, memory_mib=512))
    await raw.cpu_when_serving(sandbox)
    camera = (_EXAMPLES / "video-stream" / "camera.py").read_text()
    for program, arguments in ((_SERVER, ""), (camera, str(_CAMERA))):
        started = f"python3 -c {shlex.quote(program)} {arguments} >/dev/null 2>&1 </dev/null & sleep 1"
        await asyncio.to_thread(sandbox.exec, ["sh", "-c", started])
    wanted = (tunnel("tcp", _STREAM), tunnel("udp", _CAMERA, letter="b"))
    opened = [await raw.network.open_tunnel(sandbox.slot, each) for each in wanted]
    return sandbox.slot, {each.kind: each.public_port or 0 for each in opened}


def _let_through(raw: RawBox, slot: Slot) -> None:
    """Route to the sandbox through both namespaces, ahead of every rule."""
    with Links() as links:
        link = links.find(f"sl{raw.instance}")
        assert link is not None
        router = str(links.neighbours(link.index)[0].address)
    subprocess.run(["ip", "route", "add", f"{slot.address}/32", "via", router], check=True)
    table = f"sandlot_{raw.instance}"
    rules = [f"insert rule inet {table} {rule} accept" for rule in (
        f"first ip saddr {slot.address}", f"forward ip daddr {slot.address}",
    )]  # fmt: skip
    subprocess.run(["nft", "-f", "-"], input="\n".join(rules), text=True, check=True)
    inner = [f"insert rule inet {ROUTER_TABLE} forward ip {side} {slot.address} accept" for side in ("saddr", "daddr")]
    World.nft(raw.router_pin, "\n".join(inner))


def _rates(ways: Ways) -> list[Row]:
    found: list[Row] = []
    for name, act in (("out of", _down), ("into", _up)):
        taken: list[list[float]] = [[], [], []]
        for number in range(ROUNDS + 1):
            for times, connect in zip(taken, (ways.tunnel, ways.routed, ways.next_to_it), strict=True):
                rate = act(connect)
                if number:  # the first warms all up
                    times.append(rate)
        ours, theirs, near = (median(each) for each in taken)
        found.append(
            Row(
                name=f"raw tunnel, TCP, {name} a sandbox",
                unit="MB/s",
                value=ours,
                baseline=theirs,
                baseline_name="a plain route from the same client to the same sandbox, without tunnel or rules",
                limit=0.95,
                more_is_better=True,
                note=f"p50 of {ROUNDS} in turn, {BYTES >> 20} MiB each; from the router namespace {near:.0f} MB/s",
            )
        )
    return found


def _measure(raw: RawBox, slot: Slot, public: dict[str, int]) -> list[Row]:
    with tempfile.TemporaryDirectory() as directory, Outside(Path(directory) / "outside") as outside:
        ways = Ways(outside, raw.router_pin, slot.address, public)
        rows = _rates(ways)
        trips = [_trips([ways.tunnel, ways.routed, ways.next_to_it]) for _ in range(3)]
        ours, theirs, near = (median([each[at] for each in trips]) for at in range(3))
        video = _watched(outside.pin, str(outside.host.ip), public["udp"])
        beside = _watched(outside.pin, slot.address, _CAMERA)
    rows.append(
        Row(
            name="raw tunnel, TCP, one byte there and back",
            unit="µs",
            value=ours,
            baseline=theirs,
            baseline_name="a plain route from the same client to the same sandbox, without tunnel or rules",
            limit=1.05,
            note=f"p50 of {TRIPS}, in turn; p50 of 3 such; from the router namespace itself {near:.0f} µs",
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
                f"{video.way_p50_ms} ms (p50), {video.way_p99_ms} ms (p99); by the plain route {beside.lost} lost, "
                f"jitter {beside.jitter_ms} ms, {beside.way_p50_ms} ms, {beside.way_p99_ms} ms"
            ),
        )
    )
    return rows


async def tunnels(_: Platform, raw: RawBox) -> list[Row]:
    """Raw tunnels."""
    slot, public = await _served(raw)
    try:
        await asyncio.to_thread(_let_through, raw, slot)
        return await asyncio.to_thread(_measure, raw, slot, public)
    finally:
        await raw.clear()
