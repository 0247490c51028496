"""A real encoder: ffmpeg makes a moving picture with the time in it (see meter.py), and sends it in one of four ways.

    python3 encoder.py FFMPEG rtp PORT REPORTS_PORT SECONDS   H.264 in RTP, to whoever sends a datagram to both ports
    python3 encoder.py FFMPEG ts PORT SECONDS                 H.264 in MPEG-TS, to the first who connects
    python3 encoder.py FFMPEG hls PORT SECONDS                H.264 in HLS, served over HTTP until it is killed
    python3 encoder.py FFMPEG push URL SECONDS                H.264 by RTSP over TCP, to a server
    python3 encoder.py FFMPEG take PORT                       is that server: decodes what comes, and measures it

The first three run in a sandbox. `push` runs outside, and `take` in the sandbox.
"""

import functools
import http.server
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

RATE = 30
SIZE = "640x360"
HELLO = b"play"
CROP = "crop=512:16:0:0,format=gray"


def command(ffmpeg: str, seconds: float, *output: str) -> list[str]:
    """Return what makes the picture in real time, encodes it without looking ahead, and sends it."""
    # One register keeps the time at which a picture's first pixel was painted: all squares show the same.
    now = "st(0,if(eq(X+Y,0),floor(time(0)*1000),ld(0)))"
    square = "floor(X/8)"
    word = f"if(lt({square},40),ld(0)/pow(2,{square}),N/pow(2,{square}-40))"
    stamp = f"geq=lum='{now}*0+if(gte(mod(floor({word}),2),1),235,16)'"
    # One source, so that nothing waits for anything: the stamp is painted when the picture is made.
    paint = f"[0:v]split[whole][edge];[edge]crop=512:16:0:0,format=gray,{stamp}[stamp];[whole][stamp]overlay=0:0"
    return [
        *(ffmpeg, "-hide_banner", "-loglevel", "error", "-nostdin", "-filter_complex_threads", "1"),
        *("-re", "-f", "lavfi", "-t", str(seconds), "-i", f"testsrc2=size={SIZE}:rate={RATE}"),
        *("-filter_complex", f"{paint},format=yuv420p"),
        *("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-b:v", "1500k"),
        # A key frame a second: who comes later, or loses something, has a picture again that soon.
        *("-g", str(RATE), "-keyint_min", str(RATE), "-sc_threshold", "0"),
        *output,
    ]


def rtp(ffmpeg: str, port: int, reports_port: int, seconds: float) -> int:
    """Wait for the viewer on both ports, and answer from them: through a tunnel a sandbox answers, and begins nothing."""
    viewers: list[tuple[str, int]] = []
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for bound, at in zip(sockets, (port, reports_port), strict=True):
        # Not 127.0.0.1: a tunnel comes out at the sandbox's own address.
        bound.bind(("0.0.0.0", at))
    for bound in sockets:
        data, who = bound.recvfrom(100)
        while data != HELLO:
            data, who = bound.recvfrom(100)
        viewers.append(who)
    for bound in sockets:
        bound.close()
    (host, to), (_, reports_to) = viewers
    # From the very ports that the viewer asked at, to the very ports that it asked from: that is what a reply is.
    where = f"rtp://{host}:{to}?rtcpport={reports_to}&localrtpport={port}&localrtcpport={reports_port}&pkt_size=1472"
    return subprocess.call(
        command(ffmpeg, seconds, "-rtpflags", "send_bye", "-f", "rtp", "-sdp_file", "/dev/null", where)
    )


def ts(ffmpeg: str, port: int, seconds: float) -> int:
    where = f"tcp://0.0.0.0:{port}?listen=1&tcp_nodelay=1"
    return subprocess.call(command(ffmpeg, seconds, "-flush_packets", "1", "-f", "mpegts", where))


def hls(ffmpeg: str, port: int, seconds: float) -> int:
    with tempfile.TemporaryDirectory() as directory:
        shape = ["-f", "hls", "-hls_time", "1", "-hls_list_size", "6", "-hls_flags", "independent_segments"]
        encoding = subprocess.Popen(command(ffmpeg, seconds, *shape, str(Path(directory) / "live.m3u8")))
        handler = functools.partial(_Quiet, directory=directory)
        try:
            http.server.ThreadingHTTPServer(("0.0.0.0", port), handler).serve_forever()
        finally:
            encoding.kill()
            encoding.wait()
    return 0


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    extensions_map = {".m3u8": "application/vnd.apple.mpegurl", ".ts": "video/mp2t", "": "application/octet-stream"}

    def log_message(self, *_: object) -> None:
        pass


def push(ffmpeg: str, url: str, seconds: float) -> int:
    return subprocess.call(command(ffmpeg, seconds, "-f", "rtsp", "-rtsp_transport", "tcp", url))


def take(ffmpeg: str, port: int) -> int:
    listening = ["-rtsp_flags", "listen", "-listen_timeout", "60", "-rtsp_transport", "tcp"]
    return measure(ffmpeg, *listening, "-i", f"rtsp://0.0.0.0:{port}/live")


def measure(ffmpeg: str, *given: str) -> int:
    """Decode a stream as soon as it comes, and print what meter.py reads from it."""
    soon = ["-flags", "low_delay", "-threads", "1", "-probesize", "65536", "-analyzeduration", "200000"]
    decode = [ffmpeg, "-hide_banner", "-loglevel", "error", "-nostdin", *soon, *given]
    raw = ["-map", "0:v", "-fps_mode", "passthrough", "-vf", CROP, "-flush_packets", "1", "-f", "rawvideo", "-"]
    decoding = subprocess.Popen([*decode, *raw], stdout=subprocess.PIPE)
    meter = subprocess.call([sys.executable, str(Path(__file__).with_name("meter.py"))], stdin=decoding.stdout)
    return decoding.wait() or meter


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ffmpeg, way, *rest = sys.argv[1:]
    if ffmpeg == "wheel":  # of PyPI: imageio-ffmpeg
        import imageio_ffmpeg

        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    match way, rest:
        case "rtp", [port, reports_port, seconds]:
            return rtp(ffmpeg, int(port), int(reports_port), float(seconds))
        case "ts", [port, seconds]:
            return ts(ffmpeg, int(port), float(seconds))
        case "hls", [port, seconds]:
            return hls(ffmpeg, int(port), float(seconds))
        case "push", [url, seconds]:
            return push(ffmpeg, url, float(seconds))
        case "take", [port]:
            return take(ffmpeg, int(port))
        case "measure", _:
            return measure(ffmpeg, *rest)
        case _:
            print(__doc__, file=sys.stderr)
            return os.EX_USAGE


if __name__ == "__main__":
    sys.exit(main())
