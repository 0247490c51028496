"""The video example as it is printed, with a client that is outside: what a sandbox sends arrives."""

import json
import os
import subprocess
import sys
from pathlib import Path

from harness import Platform
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
