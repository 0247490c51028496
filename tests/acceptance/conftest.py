"""What the scenarios share: a platform whose gateway is reached from outside too, and what set-up fetched."""

from collections.abc import Generator
from pathlib import Path

import pytest

import harness
from infra.setup import browser_for_tests, wheels
from infra.setup.places import cache_dir


@pytest.fixture(scope="session", name="platform")
def _platform() -> Generator[harness.Platform]:
    with harness.platform(gateway_host="0.0.0.0", gateway_paths="true") as started:  # noqa: S104 - for an outside
        yield started


@pytest.fixture(scope="session")
def ffmpeg_wheels() -> Path:
    return _fetched(wheels.wheels_of(cache_dir(), wheels.FFMPEG))


@pytest.fixture(scope="session")
def ffmpeg(ffmpeg_wheels: Path) -> str:
    return str(wheels.ffmpeg_of(ffmpeg_wheels))


@pytest.fixture(scope="session")
def jupyter_wheels() -> Path:
    return _fetched(wheels.wheels_of(cache_dir(), wheels.JUPYTER))


@pytest.fixture(scope="session")
def browser_root() -> Path:
    return _fetched(browser_for_tests.root_of(cache_dir()))


def _fetched(path: Path) -> Path:
    assert path.is_dir(), f"{path} is not there: run 'make acceptance'"
    return path
