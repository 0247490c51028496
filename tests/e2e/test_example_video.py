"""The video example as it is printed, with a client that is outside: what a sandbox sends arrives."""

import json
import os
import subprocess
import sys
from pathlib import Path

from harness import Platform, cache_dir
from infra.setup import wheels
from network_world import World
from tunnel_kit import Outside

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "stream_video.py"


def test_a_stream_comes_out_of_a_sandbox_through_its_tunnel(platform: Platform, tmp_path: Path) -> None:
    """From this machine; a slow stream, because here other tests run beside it."""
    report = tmp_path / "report.json"
    environment = os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key}
    argv = [sys.executable, str(_EXAMPLE), "--seconds", "2", "--frames", "10", "--packets", "10"]
    done = subprocess.run(
        [*argv, "--report", str(report)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rtp://" in done.stdout
    measured = json.loads(report.read_text())
    assert (measured["sent"], measured["received"]) == (200, 200)


def test_a_real_encoder_is_watched_through_its_tunnels(platform: Platform, tmp_path: Path) -> None:
    """RTP and its reports; the other ways, and a viewer outside, are in `tests/acceptance`."""
    packages = wheels.wheels_of(cache_dir(), wheels.FFMPEG_SMALL)
    assert packages.is_dir(), "run 'make test-tools'"
    report = tmp_path / "report.json"
    environment = os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key}
    argv = [sys.executable, str(_EXAMPLE.with_name("watch_video.py")), "--way", "rtp", "--seconds", "2"]
    more = ["--packages", str(packages), "--ffmpeg", str(wheels.ffmpeg_of(packages)), "--report", str(report)]
    done = subprocess.run([*argv, *more], env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(report.read_text())["rtp"]
    assert (measured["pictures"], measured["damaged"], measured["packets_lost"]) == (60, 0, 0)


def test_the_same_camera_is_watched_from_outside(platform: Platform, tmp_path: Path) -> None:
    camera = (_EXAMPLE.parent / "video-stream" / "camera.py").read_bytes()
    sandbox = platform.create(egress={"mode": "blocked"}, tunnels=[{"port": 5004, "kind": "udp"}])
    path = f"/v1/sandboxes/{sandbox['id']}"
    platform.http.put(f"{path}/files", params={"path": "/tmp/camera.py"}, content=camera).raise_for_status()
    platform.http.post(f"{path}/processes", json={"argv": ["python3", "/tmp/camera.py", "5004"]}).raise_for_status()
    platform.http.get(f"{path}/ports", params={"port": 5004, "wait_seconds": 60}).raise_for_status()
    port = sandbox["tunnels"][0]["public_port"]
    look = (
        f"import sys; sys.path.insert(0, {str(_EXAMPLE.parent)!r}); import stream_video; "
        f"print(stream_video.watch((sys.argv[1], {port}), 20, 10, 10).lost)"
    )
    with Outside(tmp_path / "outside") as outside:
        said = World.run_inside(outside.pin, [sys.executable, "-c", look, str(outside.host.ip)])
    assert said.strip() == "0"
    platform.http.delete(f"{path}?grace_seconds=0").raise_for_status()
