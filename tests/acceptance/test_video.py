"""A real encoder's video comes out of a sandbox by every way there is, to this machine and to one outside."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import watch_video
from harness import Platform
from network_world import World
from sandlot import Client, Sandbox
from tunnel_kit import Outside

_EXAMPLES = Path(watch_video.__file__).parent
_SECONDS = "6"
_PICTURES = 6 * 30


def test_the_example_as_it_is_printed(platform: Platform, ffmpeg: str, ffmpeg_wheels: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    environment = os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key}
    argv = [sys.executable, str(_EXAMPLES / "watch_video.py"), "--seconds", _SECONDS, "--ffmpeg", ffmpeg]
    more = ["--packages", str(ffmpeg_wheels), "--report", str(report)]
    done = subprocess.run([*argv, *more], env=environment, capture_output=True, text=True, check=False, timeout=280)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(report.read_text())
    assert list(measured) == ["rtp", "ts", "hls", "gateway", "rtsp", "direct"]
    assert (measured["rtp"]["packets_lost"], measured["rtp"]["pictures"]) == (0, _PICTURES)
    assert all(found["missing"] == found["damaged"] == 0 for found in measured.values()), measured


@pytest.fixture(scope="module", name="client")
def _client(platform: Platform) -> Generator[Client]:
    with Client(api_key=platform.key, url=platform.url) as client:
        yield client


def test_the_same_from_outside(
    platform: Platform, client: Client, ffmpeg: str, ffmpeg_wheels: Path, tmp_path: Path
) -> None:
    """The viewer is in a network namespace of its own; nothing but what was opened leads from there to the sandbox."""
    image = watch_video.image_with_ffmpeg(ffmpeg_wheels)
    with (
        Sandbox.create(image, egress="blocked", client=client) as sandbox,
        Outside(tmp_path / "outside") as outside,
    ):
        ports = watch_video.RTP_PORT, watch_video.REPORTS_PORT, watch_video.TS_PORT, watch_video.HLS_PORT
        rtp, reports, ts = (
            sandbox.tunnels.open(port, kind) for port, kind in zip(ports, ("udp", "udp", "tcp"), strict=False)
        )
        watch_video.encode(sandbox, "rtp", *ports[:2], _SECONDS)
        host = str(outside.host.ip)
        seen = _watch(outside, ffmpeg, "watch_rtp", (host, rtp.public_port), (host, reports.public_port))
        assert (seen["packets_lost"], seen["missing"], seen["pictures"]) == (0, 0, _PICTURES), seen
        watch_video.encode(sandbox, "ts", ports[2], _SECONDS)
        sandbox.wait_for_port(ports[2])
        seen = _watch(outside, ffmpeg, "play", "-i", f"tcp://{host}:{ts.public_port}")
        assert (seen["missing"], seen["damaged"]) == (0, 0), seen
        tunnel = sandbox.tunnels.open(ports[3], "http")
        link = sandbox.tunnels.link(tunnel, "live.m3u8", form="path")
        with closing(watch_video.Served(sandbox, float(_SECONDS))):
            seen = _watch(outside, ffmpeg, "watch_hls", link.url)
        assert (seen["missing"], seen["damaged"]) == (0, 0), seen


def _watch(outside: Outside, ffmpeg: str, function: str, *given: object) -> dict[str, Any]:
    script = f"import json, watch_video; print(json.dumps(watch_video.{function}(*{[ffmpeg, *given]!r})))"
    environment = os.environ | {"PYTHONPATH": str(_EXAMPLES)}
    done = World.do(
        outside.pin,
        lambda: subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=120
        ),
    )
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"outside, {function}: {done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])
