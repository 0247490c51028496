"""Plays a video stream out of a sandbox, over UDP through a tunnel, and measures what arrives.

    python examples/stream_video.py [--seconds N] [--frames A_SECOND] [--packets A_FRAME] [--host HOST] [--report FILE]

Ends with 1 if a packet was lost. Needs SANDLOT_URL and SANDLOT_API_KEY.
"""

import argparse
import json
import socket
import statistics
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sandlot import Sandbox, SandlotError

CAMERA = Path(__file__).resolve().parent / "video-stream" / "camera.py"
INSIDE = "camera.py"
PORT = 5004
RTP = struct.Struct(">BBHIIq")
PATIENCE_SECONDS = 10.0
ROOM_BYTES = 8 << 20
RECEIVE_BUFFER_FORCE = 33
"""SO_RCVBUFFORCE of Linux, which Python does not name."""


@dataclass(frozen=True)
class Measured:
    """What arrived of a stream."""

    sent: int
    received: int
    lost: int
    out_of_order: int
    jitter_ms: float
    """RFC 3550's: the running mean of how much the time on the way differs from packet to packet."""
    way_p50_ms: float
    way_p99_ms: float
    """From the sandbox's clock to this program's."""
    megabits_per_second: float


def watch(address: tuple[str, int], frames: int, per_second: int, packets: int) -> Measured:
    """Ask for a stream and take it in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as screen:
        make_room(screen)
        screen.connect(address)
        screen.settimeout(PATIENCE_SECONDS)
        arrived = ask(screen, b"play %d %d %d" % (frames, per_second, packets))
        sent = 0
        while not sent:
            data = screen.recv(2048)
            if data.startswith(b"bye "):
                sent = int(data[4:])
            else:
                arrived.append((data, time.time_ns()))
    return measure(arrived, sent)


def make_room(screen: socket.socket) -> None:
    """Have room for many frames, so that a moment in which this program does not run costs none."""
    try:
        screen.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER_FORCE, ROOM_BYTES)
    except OSError:
        # Without the right, no more than net.core.rmem_max: by default that is one frame and a half.
        screen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)


def ask(screen: socket.socket, words: bytes) -> list[tuple[bytes, int]]:
    """Ask until the first packet comes: a question may be lost, or come before anybody listens."""
    screen.settimeout(1)
    for _ in range(int(PATIENCE_SECONDS)):
        screen.send(words)
        try:
            return [(screen.recv(2048), time.time_ns())]
        except (TimeoutError, ConnectionRefusedError):
            continue
    raise TimeoutError("nothing comes out of the tunnel")


def measure(arrived: list[tuple[bytes, int]], sent: int) -> Measured:
    """Reckon loss, order, jitter and time on the way."""
    seen: set[int] = set()
    jitter, before, last, late = 0.0, None, -1, 0
    ways: list[float] = []
    for data, at in arrived:
        _, _, low, _, _, left_at = RTP.unpack_from(data)
        # Sequence numbers have 16 bits: the one nearest to the last is meant.
        number = last + ((low - last + 0x8000) & 0xFFFF) - 0x8000
        late += number < last
        seen.add(number)
        last = max(last, number)
        way = (at - left_at) / 1e6
        if before is not None:
            jitter += (abs(way - before) - jitter) / 16
        before = way
        ways.append(way)
    seconds = max(1e-9, (arrived[-1][1] - arrived[0][1]) / 1e9)
    return Measured(
        sent=sent,
        received=len(seen),
        lost=sent - len(seen),
        out_of_order=late,
        jitter_ms=round(jitter, 3),
        way_p50_ms=round(statistics.median(ways), 3),
        way_p99_ms=round(sorted(ways)[len(ways) * 99 // 100], 3),
        megabits_per_second=round(sum(len(data) + 28 for data, _ in arrived) * 8 / seconds / 1e6, 1),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=60, help="a second")
    parser.add_argument("--packets", type=int, default=60, help="a frame, of 1,500 bytes")
    parser.add_argument("--host", help="where the node is reached, if not at the address that the tunnel names")
    parser.add_argument("--report", type=Path, help="where to write what was measured, as JSON")
    given = parser.parse_args()
    try:
        with Sandbox.create(egress="blocked") as sandbox:
            sandbox.files.write(INSIDE, CAMERA.read_bytes())
            sandbox.start(["python3", INSIDE, str(PORT)])
            sandbox.wait_for_port(PORT)
            tunnel = sandbox.tunnels.open(PORT, "udp")
            print(f"rtp://{tunnel.address}")
            address = (given.host or tunnel.host or "", tunnel.public_port or 0)
            measured = watch(address, given.seconds * given.frames, given.frames, given.packets)
    except (SandlotError, OSError) as error:
        print(f"stream_video: {error}", file=sys.stderr)
        return 2
    print(
        f"{measured.received} of {measured.sent} packets, {measured.lost} lost, {measured.out_of_order} out of order, "
        f"{measured.megabits_per_second} Mbit/s; jitter {measured.jitter_ms} ms, "
        f"on the way {measured.way_p50_ms} ms (p50) and {measured.way_p99_ms} ms (p99)"
    )
    if given.report is not None:
        given.report.write_text(json.dumps(asdict(measured)))
    return 1 if measured.lost else 0


if __name__ == "__main__":
    sys.exit(main())
