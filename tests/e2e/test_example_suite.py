"""A real project with a real test suite goes in, runs, and its report comes back: the example as it is printed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness import Platform

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _run(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_EXAMPLES / "run_test_suite.py"), *arguments],
        env=os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_suite_runs_inside_and_its_broken_stream_loses_nothing(platform: Platform, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = _run(platform, "--break-every", "300", "--report", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "46 tests, 0 failed" in done.stdout
    cases = json.loads(report.read_text())["cases"]
    assert len(cases) == 46
    for case in cases:
        method = case["name"].rpartition(".")[2]
        assert f"{method} (" in done.stdout


def test_a_failing_suite_has_its_own_exit_code(platform: Platform, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(_EXAMPLES / "python-tests", project)
    module = project / "intervals" / "interval.py"
    module.write_text(module.read_text().replace("self.start <= point < self.end", "self.start <= point <= self.end"))
    done = _run(platform, "--project", str(project))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_does_not_hold_its_end" in done.stdout
    assert "nothing lost" in done.stdout
