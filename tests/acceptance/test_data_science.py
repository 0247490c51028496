"""A data scientist's image: numpy, pandas and a package of one's own on `base`, by code and by a Dockerfile; one step
changed, and only that one run."""

import shutil
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from harness import Platform, cache_dir
from harness import platform as platforms
from infra.setup import images_for_tests
from infra.setup.images_for_tests import wheels_of
from infra.setup.progress import Progress
from sandlot import Client, Sandbox
from sandlot.images import Image, ImageInfo

PACKAGES = ["numpy", "pandas", "greeting"]
INSTALL = ["--no-index", "--find-links=/wheels", *PACKAGES]
DOCKERFILE = """\
FROM base
USER root
COPY wheels/*.whl /wheels/
RUN pip install {install}
RUN echo {word} > /word
USER user
WORKDIR /home/user
"""
PROGRAM = """
import greeting, numpy, pandas
frame = pandas.DataFrame({"a": numpy.arange(10), "b": numpy.arange(10) ** 2})
print(greeting.WORD, int(frame.b.sum()), open("/word").read().strip())
"""


@pytest.fixture(scope="module", name="platform")
def _platform() -> Generator[Platform]:
    with platforms(heartbeat_seconds="1") as running:
        yield running


@pytest.fixture(scope="module", name="client")
def _client(platform: Platform) -> Generator[Client]:
    with Client(url=platform.url, api_key=platform.key) as client:
        yield client


@pytest.fixture(scope="module", name="project")
def _project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("project")
    images_for_tests.provide(Progress(home / "log"), cache_dir())
    shutil.copytree(wheels_of(cache_dir()), home / "wheels")
    with zipfile.ZipFile(home / "wheels/greeting-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("greeting.py", "WORD = 'good day'\n")
        info = "greeting-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return home


def by_code(project: Path, word: str) -> Image:
    image = Image.base().user("root").copy(project / "wheels", "/wheels").pip_install(*INSTALL)
    return image.run(f"echo {word} > /word").user("user").workdir("/home/user")


def by_dockerfile(project: Path, word: str) -> Image:
    (project / "Dockerfile").write_text(DOCKERFILE.format(install=" ".join(INSTALL), word=word))
    return Image.from_dockerfile(project / "Dockerfile", context=project)


def steps_run(image: ImageInfo) -> list[str]:
    """What was not there already."""
    return [step["text"] for step in image.raw["steps"] if step["state"] == "done" and not step["cached"]]


@pytest.mark.parametrize("make", [by_code, by_dockerfile])
def test_an_image_is_built_used_changed_and_built_again(
    client: Client, project: Path, make: Callable[[Path, str], Image]
) -> None:
    first = client.images.make(make(project, "one"))
    with Sandbox.create(image=first.id, client=client) as sandbox:
        assert sandbox.run(["python3", "-c", PROGRAM]).stdout == "good day 285 one\n"
    second = client.images.make(make(project, "two"))
    commands = [text for text in steps_run(second) if "pip" in text or "echo" in text]
    assert len(commands) == 1, steps_run(second)
    assert "echo two" in commands[0]
    with Sandbox.create(image=second.id, client=client) as sandbox:
        assert sandbox.run(["python3", "-c", PROGRAM]).stdout == "good day 285 two\n"
    assert steps_run(client.images.make(make(project, "two"))) == []
