"""Builds by the Python client and the command, on the real thing."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness import Platform
from harness import platform as platforms
from sandlot import AsyncClient, AsyncSandbox, Client, Sandbox
from sandlot.images import Image, ImageFailedError


@pytest.fixture(scope="module", name="platform")
def _platform() -> Generator[Platform]:
    with platforms(heartbeat_seconds="1") as running:
        yield running


@pytest.fixture(name="project")
def _project(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("print('from the app')\n")
    (tmp_path / "app" / "secret.key").write_text("never sent")
    (tmp_path / ".dockerignore").write_text("**/*.key\n")
    (tmp_path / "Dockerfile").write_text(
        "ARG WHO=x\nFROM base\nARG WHO\nCOPY app /app\nRUN echo built for $WHO; ls /app\n"
    )
    return tmp_path


def test_an_image_is_made_by_code_and_started(platform: Platform, project: Path) -> None:
    image = Image.base().user("root").copy(project / "app", "/app", ignore=["*.key"]).run("touch /made").env(WORD="w")
    lines: list[dict[str, Any]] = []
    with Client(api_key=platform.key, url=platform.url) as client:
        info = client.images.make(image, tags=["coded:1"], said=lines.append)
        assert [line["text"] for line in lines if line["kind"] == "step"][2] == "[3/4] run touch /made"
        with Sandbox.create(image=image, client=client) as sandbox:
            assert sandbox.run("python3 /app/main.py; ls /app /made; echo $WORD", check=True).stdout == (
                "from the app\n/made\n\n/app:\nmain.py\nw\n"
            )
        assert client.images.find("coded:1").digest == info.digest
        with pytest.raises(ImageFailedError, match="exit code 3"):
            client.images.make(image.run("exit 3"))


def test_the_same_without_blocking(platform: Platform, project: Path) -> None:
    async def work() -> str:
        async with AsyncClient(api_key=platform.key, url=platform.url) as client:
            image = Image.from_dockerfile(project / "Dockerfile", build_args={"WHO": "you"})
            async with await AsyncSandbox.create(image=image, client=client) as sandbox:
                return (await sandbox.run(["ls", "/app"])).stdout

    assert asyncio.run(work()) == "main.py\n"


def sandlot(platform: Platform, *words: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "SANDLOT_API_KEY": platform.key, "SANDLOT_URL": platform.url}
    command = [sys.executable, "-m", "sandlot.cli", "image", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_shows_what_steps_say(platform: Platform, project: Path) -> None:
    done = sandlot(platform, "build", "-t", "cli:1", "--build-arg", "WHO=me", str(project))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("img")
    assert "built for me\nmain.py\n" in done.stderr
    (project / "Dockerfile").write_text("FROM base\nRUN echo why; exit 9\n")
    failed = sandlot(platform, "build", str(project))
    assert failed.returncode != 0
    assert "why" in failed.stderr
    assert "exit code 9" in failed.stderr
