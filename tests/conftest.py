"""Fixtures every test may use, and the check that a test run leaves nothing in the kernel."""

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack

import pytest

import harness
from infra import residue

harness.set_environment()

_before = pytest.StashKey[set[residue.Residue]]()
_LEAVE_SECONDS = 10.0
_UMASK = 0o022
os.umask(_UMASK)  # whatever that of the caller: users inside images of the tests' making need a way in


@pytest.fixture(autouse=True)
def same_umask() -> Generator[None]:
    """Fail a test that leaves another umask to those after it."""
    yield
    assert os.umask(_UMASK) == _UMASK


@pytest.fixture(scope="session")
def platform() -> Generator[harness.Platform]:
    """A whole real platform, shared by all tests that do not need one of their own."""
    with harness.platform() as started:
        yield started


@pytest.fixture
def start_platform() -> Generator[Callable[..., harness.Platform]]:
    """Starts platforms with settings of their own; all end with the test."""
    with ExitStack() as stack:

        def start(**settings: str) -> harness.Platform:
            return stack.enter_context(harness.platform(**settings))

        yield start


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_before] = residue.everything()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves something of ours behind, when it has the machine to itself (SANDLOT_LEAK_CHECK)."""
    left: set[residue.Residue] = set()

    def nothing_left() -> bool:
        nonlocal left
        left = residue.everything() - session.config.stash[_before]
        return not left

    try:
        harness.eventually(nothing_left, "nothing left behind", within=_LEAVE_SECONDS if _alone() else 0)
    except AssertionError:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        reporter.section("left behind in the kernel" if _alone() else "new in the kernel, maybe another's", sep="!")
        for item in sorted(map(str, left)):
            reporter.line(item)
        if _alone():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the programs' logs beside a failure."""
    report = yield
    if report.failed:
        for live in harness.LIVE:
            report.sections.extend((f"{name} of {live.instance}", text) for name, text in live.logs().items())
    return report


def _alone() -> bool:
    return os.environ.get("SANDLOT_LEAK_CHECK") == "1"
