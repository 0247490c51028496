"""Plays a real encoder's video out of a sandbox, by each way, and measures what arrives: packets and pictures.

    python examples/watch_video.py [--way rtp|ts|hls|gateway|rtsp|direct] [--seconds N] [--packages DIR]
        [--ffmpeg PROGRAM] [--host HOST] [--report FILE]

rtp      H.264 in RTP over UDP, through two udp tunnels: the stream, and the encoder's own reports
ts       MPEG-TS over TCP, through a tcp tunnel
hls      HLS over HTTP, through a tcp tunnel
gateway  the same HLS through an http tunnel: by the gateway, with a token
rtsp     the other way round: a camera outside sends RTSP into the sandbox through a tcp tunnel
direct   RTP from the same encoder on this machine, without a sandbox: what rtp is compared to

Needs SANDLOT_URL and SANDLOT_API_KEY, and ffmpeg on this machine. Ends with 1 if anything was lost.
"""

import argparse
import base64
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sandlot import Image, Process, Sandbox, SandlotError, Tunnel

HERE = Path(__file__).resolve().parent / "video-stream"
INSIDE = "/opt/video"
PACKAGE = "imageio-ffmpeg"
RTP_PORT, REPORTS_PORT, TS_PORT, HLS_PORT, RTSP_PORT = 5004, 5005, 5000, 8080, 8554
HELLO = b"play"
CLOCK_HZ = 90_000
PATIENCE_SECONDS = 30.0
ROOM_BYTES = 8 << 20
RECEIVE_BUFFER_FORCE = 33
"""SO_RCVBUFFORCE of Linux, which Python does not name."""
SENDER_REPORT, BYE = 200, 203
SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=-
c=IN IP4 127.0.0.1
t=0 0
m=video {port} RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
"""


@dataclass
class Packets:
    """What arrived of a stream of RTP, as RFC 3550 reckons it."""

    sent: int | None = None
    """By the encoder's last report."""
    received: int = 0
    out_of_order: int = 0
    jitter_ms: float = 0.0
    """The running mean of how much the spacing of two packets differs from what their time stamps say."""
    reports: int = 0
    _seen: set[int] = field(default_factory=set[int], repr=False)
    _last: int | None = None
    _before: float | None = None

    def take(self, data: bytes, at_seconds: float) -> None:
        """Count one packet."""
        _, _, low, stamp = struct.unpack_from(">BBHI", data)
        last = low if self._last is None else self._last
        # Sequence numbers have 16 bits: the one nearest to the last is meant.
        number = last + ((low - last + 0x8000) & 0xFFFF) - 0x8000
        self.out_of_order += self._last is not None and number < last
        self._last = max(last, number)
        self._seen.add(number)
        self.received = len(self._seen)
        way = at_seconds * CLOCK_HZ - stamp
        if self._before is not None:
            # Time stamps wrap at 32 bits: only what is plausible counts.
            step = abs(way - self._before)
            if step < CLOCK_HZ * 60:
                self.jitter_ms += (step / CLOCK_HZ * 1000 - self.jitter_ms) / 16
        self._before = way

    def report(self, data: bytes) -> bool:
        """Take a compound packet of RTCP; tells whether the encoder is gone."""
        gone, at = False, 0
        while at + 4 <= len(data):
            _, kind, words = struct.unpack_from(">BBH", data, at)
            if kind == SENDER_REPORT and at + 28 <= len(data):
                self.reports += 1
                self.sent = struct.unpack_from(">I", data, at + 20)[0]
            gone = gone or kind == BYE
            at += 4 * (words + 1)
        return gone

    @property
    def lost(self) -> int:
        return max(0, (self.sent or 0) - self.received)

    def as_json(self) -> dict[str, Any]:
        return {
            "packets_sent": self.sent,
            "packets_received": self.received,
            "packets_lost": self.lost,
            "packets_out_of_order": self.out_of_order,
            "jitter_ms": round(self.jitter_ms, 2),
            "reports": self.reports,
        }


def watch_rtp(ffmpeg: str, address: tuple[str, int], reports: tuple[str, int]) -> dict[str, Any]:
    """Ask for the stream through both tunnels, measure its packets, and have ffmpeg show them."""
    player_port = _free_pair()
    sdp = "data:application/sdp;base64," + base64.b64encode(SDP.format(port=player_port).encode()).decode()
    with Player(ffmpeg, ["-protocol_whitelist", "data,udp,rtp", "-reorder_queue_size", "0", "-i", sdp]) as player:
        with (
            _datagrams(address) as screen,
            _datagrams(reports) as ear,
            _datagrams(("127.0.0.1", player_port)) as picture,
            _datagrams(("127.0.0.1", player_port + 1)) as words,
        ):
            _until_heard(picture)
            measured = _relay(screen, ear, picture, words)
        return measured.as_json() | player.finish()


def _relay(screen: socket.socket, ear: socket.socket, picture: socket.socket, words: socket.socket) -> Packets:
    """Pass what comes on to the player, until the encoder says goodbye."""
    measured = Packets()
    over = threading.Event()
    listener = threading.Thread(target=_listen, args=(measured, over, screen, ear, words), daemon=True)
    listener.start()
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        data = _hear(screen, 0.5)
        if data:
            measured.take(data, time.time())
            _say(picture, data)
            end = time.monotonic() + PATIENCE_SECONDS
        elif over.is_set():
            break
    over.set()
    listener.join()
    if not measured.received:
        raise TimeoutError("nothing comes out of the tunnel")
    return measured


def _listen(
    measured: Packets, over: threading.Event, screen: socket.socket, ear: socket.socket, words: socket.socket
) -> None:
    """Ask for the stream until it comes, and take in the encoder's reports."""
    while not over.is_set():
        # Said again and again: a datagram may be lost, or come before anybody listens.
        if not measured.received:
            for each in (screen, ear):
                _say(each, HELLO)
        data = _hear(ear, 0.5)
        if data:
            _say(words, data)
            if measured.report(data):
                over.set()


class Player:
    """ffmpeg, decoding a stream, and what meter.py reads from its pictures."""

    def __init__(self, ffmpeg: str, given: list[str]) -> None:
        command = [sys.executable, str(HERE / "encoder.py"), ffmpeg, "measure", *given]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()

    def finish(self) -> dict[str, Any]:
        """Wait for the end of the stream, and return what was seen."""
        said, _ = self._process.communicate(timeout=PATIENCE_SECONDS + 600)
        return json.loads(said.splitlines()[-1])


def play(ffmpeg: str, *given: str) -> dict[str, Any]:
    """Play something that ffmpeg opens by itself."""
    with Player(ffmpeg, list(given)) as player:
        return player.finish()


def watch_hls(ffmpeg: str, url: str, headers: str = "") -> dict[str, Any]:
    """Play from the last segment that is there."""
    return play(ffmpeg, *(["-headers", headers] if headers else []), "-live_start_index", "-1", "-i", url)


def push(ffmpeg: str, url: str, seconds: float) -> None:
    """Be a camera."""
    command = [sys.executable, str(HERE / "encoder.py"), ffmpeg, "push", url, str(seconds)]
    subprocess.run(command, check=True)


def image_with_ffmpeg(packages: Path | None) -> Image:
    """Return `base` with ffmpeg, from PyPI or from wheels in a directory, and the encoder."""
    image = Image.base()
    if packages is None:
        image = image.pip_install(PACKAGE)
    else:
        image = image.copy(packages, "/tmp/wheels", ignore=["bin"])  # noqa: S108 - in the image
        image = image.pip_install("--no-index", "--find-links=/tmp/wheels", PACKAGE)
    return image.copy(HERE, INSIDE)


def encode(sandbox: Sandbox, *words: object) -> Process:
    """Start the encoder in the sandbox."""
    return sandbox.start(["python3", f"{INSIDE}/encoder.py", "wheel", *(str(word) for word in words)])


@dataclass(frozen=True)
class Given:
    """What the ways need."""

    ffmpeg: str
    seconds: float
    host: str | None

    def address(self, tunnel: Tunnel) -> tuple[str, int]:
        return self.host or tunnel.host or "", tunnel.public_port or 0


def by_rtp(sandbox: Sandbox, given: Given) -> dict[str, Any]:
    stream, reports = (sandbox.tunnels.open(port, "udp") for port in (RTP_PORT, REPORTS_PORT))
    encode(sandbox, "rtp", RTP_PORT, REPORTS_PORT, given.seconds)
    return watch_rtp(given.ffmpeg, given.address(stream), given.address(reports))


def by_ts(sandbox: Sandbox, given: Given) -> dict[str, Any]:
    host, port = given.address(sandbox.tunnels.open(TS_PORT, "tcp"))
    encode(sandbox, "ts", TS_PORT, given.seconds)
    sandbox.wait_for_port(TS_PORT)
    return play(given.ffmpeg, "-i", f"tcp://{host}:{port}")


def by_hls(sandbox: Sandbox, given: Given) -> dict[str, Any]:
    host, port = given.address(sandbox.tunnels.open(HLS_PORT, "tcp"))
    with closing(Served(sandbox, given.seconds)):
        return watch_hls(given.ffmpeg, f"http://{host}:{port}/live.m3u8")


def by_gateway(sandbox: Sandbox, given: Given) -> dict[str, Any]:
    tunnel = sandbox.tunnels.open(HLS_PORT, "http")
    # By path: browsers resolve names below `localhost`, players do not. The player keeps the cookie that it is given.
    link = sandbox.tunnels.link(tunnel, "live.m3u8", form="path" if tunnel.path_url else "name")
    with closing(Served(sandbox, given.seconds)):
        return watch_hls(given.ffmpeg, link.url)


def by_rtsp(sandbox: Sandbox, given: Given) -> dict[str, Any]:
    host, port = given.address(sandbox.tunnels.open(RTSP_PORT, "tcp"))
    taking = encode(sandbox, "take", RTSP_PORT)
    sandbox.wait_for_port(RTSP_PORT)
    push(given.ffmpeg, f"rtsp://{host}:{port}/live", given.seconds)
    return json.loads(taking.wait().check().stdout.splitlines()[-1])


def directly(_: Sandbox, given: Given) -> dict[str, Any]:
    """The same encoder on this machine, without a sandbox or a tunnel: what the others are compared to."""
    ports = [_free_pair() for _ in range(2)]
    words = [given.ffmpeg, "rtp", *(str(port) for port in ports), str(given.seconds)]
    with subprocess.Popen([sys.executable, str(HERE / "encoder.py"), *words]):
        return watch_rtp(given.ffmpeg, ("127.0.0.1", ports[0]), ("127.0.0.1", ports[1]))


WAYS: dict[str, Callable[[Sandbox, Given], dict[str, Any]]] = {
    "rtp": by_rtp,
    "ts": by_ts,
    "hls": by_hls,
    "gateway": by_gateway,
    "rtsp": by_rtsp,
    "direct": directly,
}


class Served:
    """HLS from the sandbox, from when its first segments are there."""

    def __init__(self, sandbox: Sandbox, seconds: float) -> None:
        self._process = encode(sandbox, "hls", HLS_PORT, seconds)
        look = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{HLS_PORT}/live.m3u8')"
        sandbox.wait_for_port(HLS_PORT)
        end = time.monotonic() + PATIENCE_SECONDS
        while sandbox.run(["python3", "-c", look]).exit_code:
            if time.monotonic() > end:
                raise TimeoutError("the encoder makes no segments")

    def close(self) -> None:
        self._process.signal("SIGTERM")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--way", choices=WAYS, action="append", help="all of them unless given; may be repeated")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--packages", type=Path, help="a directory with the wheel of imageio-ffmpeg, instead of PyPI")
    parser.add_argument("--ffmpeg", default=shutil.which("ffmpeg"), help="the program on this machine")
    parser.add_argument("--host", help="where the node is reached, if not at the address that tunnels name")
    parser.add_argument("--report", type=Path, help="where to write what was measured, as JSON")
    options = parser.parse_args()
    if options.ffmpeg is None:
        parser.error("there is no ffmpeg on this machine: name one by --ffmpeg")
    measured: dict[str, dict[str, Any]] = {}
    try:
        with Sandbox.create(image_with_ffmpeg(options.packages), egress="blocked", timeout_seconds=900) as sandbox:
            for way in options.way or WAYS:
                measured[way] = WAYS[way](sandbox, Given(options.ffmpeg, options.seconds, options.host))
                print(f"{way}: {json.dumps(measured[way])}", flush=True)
    except (SandlotError, OSError, subprocess.SubprocessError) as error:
        print(f"watch_video: {error}", file=sys.stderr)
        return 2
    if options.report is not None:
        options.report.write_text(json.dumps(measured))
    lost = [way for way, found in measured.items() if found["missing"] != 0 or found.get("packets_lost")]
    return 1 if lost else 0


def _datagrams(to: tuple[str, int]) -> socket.socket:
    """Return a socket towards somebody, with room for many pictures: a moment of delay here must lose nothing."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER_FORCE, ROOM_BYTES)
    except OSError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)
    made.connect(to)
    return made


def _hear(who: socket.socket, seconds: float) -> bytes:
    who.settimeout(seconds)
    try:
        return who.recv(2048)
    except (TimeoutError, ConnectionRefusedError):
        return b""


def _say(to: socket.socket, data: bytes) -> None:
    try:
        to.send(data)
    except ConnectionRefusedError:  # what the one before met: nobody listens, or not yet
        to.send(data)


def _until_heard(out: socket.socket) -> None:
    """Wait until the player has its port: a datagram too short to be a packet is refused before."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            out.send(b"?")
            time.sleep(0.05)
            out.send(b"?")
        except ConnectionRefusedError:
            continue
        return
    raise TimeoutError("the player does not start")


def _free_pair() -> int:
    """Return an even port that is free, as the one after it is: RTP, and its reports."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1] & ~1
        try:
            for number in (port, port + 1):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as each:
                    each.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


if __name__ == "__main__":
    sys.exit(main())
