"""An image with nothing but one static program: it runs, is listed, and says that it has no shell."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness import Platform, cache_dir
from infra.setup.progress import Progress
from infra.setup.toolchain import GO_ENV, find_go

PROGRAM = """
package main

import ("fmt"; "io"; "os")

func main() {
	input, _ := io.ReadAll(os.Stdin)
	dir, _ := os.Getwd()
	fmt.Println(len(os.Args), string(input), dir, os.Getuid(), os.Getenv("COLOUR"))
	if err := os.WriteFile("/made", nil, 0o644); err != nil { fmt.Println(err) }
	os.Exit(3)
}
"""


@pytest.fixture(scope="module", name="program")
def _program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("program")
    (home / "main.go").write_text(PROGRAM)
    go = find_go(Progress(home / "log"), cache_dir())
    environment = {**os.environ, **GO_ENV}
    subprocess.run([go, "build", "-o", "hello", "main.go"], cwd=home, env=environment, check=True)
    return home / "hello"


def imported(platform: Platform, source: Path, name: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "infra.sandlotd", "image"]
    done = subprocess.run(
        [*command, "import", str(source), name, *options], env=dict(platform.env), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    listed = subprocess.run([*command, "ls", "--json"], env=dict(platform.env), capture_output=True, check=True)
    return next(row for row in map(json.loads, listed.stdout.splitlines()) if name in row["names"])


@pytest.fixture(scope="module", name="sandbox")
def _sandbox(platform: Platform, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Any]]:
    archive = tmp_path_factory.mktemp("scratch") / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(program, "hello")
    image = imported(platform, archive, "scratch", "--env", "COLOUR=blue")

    def known() -> bool:
        return platform.http.post("/v1/run", json={"image": "scratch", "command": {"argv": ["/hello"]}}).is_success

    platform.wait_until(known, "the image on the node")
    made = platform.create(image="scratch")
    assert made["image"]["id"] == image["id"]
    yield made
    platform.http.delete(f"/v1/sandboxes/{made['id']}", params={"grace_seconds": 0})


def test_its_program_runs(platform: Platform, sandbox: dict[str, Any]) -> None:
    assert (sandbox["shell"], sandbox["cwd"], sandbox["user"]) == (None, "/", "0")
    body = {"argv": ["/hello", "there"], "input": "in"}
    done = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json=body).json()
    assert (done["stdout"], done["exit_code"]) == ("2 in / 0 blue\n", 3)


def test_no_shell_is_said(platform: Platform, sandbox: dict[str, Any]) -> None:
    for call in ("run", "processes"):
        answer = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/{call}", json={"shell": "echo"})
        assert (answer.status_code, answer.json()["code"]) == (422, "no_shell")
        assert "argv" in answer.json()["hint"]


def test_a_missing_command_is_still_a_result(platform: Platform, sandbox: dict[str, Any]) -> None:
    done = platform.http.post(f"/v1/sandboxes/{sandbox['id']}/run", json={"argv": ["sh"]}).json()
    assert (done["exit_code"], done["start_error"]["code"]) == (127, "command_not_found")
