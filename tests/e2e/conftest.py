"""What several modules set up alike: Debian's own registry, open and with a password, and an image to put there."""

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from harness import cache_dir
from infra.setup import tools_for_tests
from infra.setup.progress import Progress
from real_registry import PASSWORD, Served, registry, scratch_image
from registry_kit import MadeImage, write_layout


@pytest.fixture(scope="module", name="home")
def _home() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandlot-registry-", dir="/var/tmp") as home:
        yield Path(home)


@pytest.fixture(scope="module", name="tool")
def _tool(home: Path) -> str:
    return tools_for_tests.provide(Progress(home / "logs"), cache_dir())


@pytest.fixture(scope="module", name="open_registry")
def _open_registry(tool: str, home: Path) -> Generator[Served]:
    with registry(tool, home / "open", None) as served:
        yield served


@pytest.fixture(scope="module", name="closed_registry")
def _closed_registry(tool: str, home: Path) -> Generator[Served]:
    with registry(tool, home / "closed", PASSWORD) as served:
        yield served


@pytest.fixture(scope="module", name="scratch")
def _scratch(home: Path) -> MadeImage:
    return scratch_image(home)


@pytest.fixture(scope="module", name="layout")
def _layout(home: Path, scratch: MadeImage) -> Path:
    return write_layout(home / "layout", (scratch, "v1"))
