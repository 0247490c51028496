"""Debian's own registry behind a token server: who has the password gets the image, nobody else."""

from collections.abc import Generator
from pathlib import Path

import pytest
from test_registry_real import done, images, said, sandlotd

from harness import Platform
from real_registry import PASSWORD, USER, Served, token_registry


@pytest.fixture(scope="module", name="served")
def _served(tool: str, home: Path) -> Generator[Served]:
    with token_registry(tool, home / "token", PASSWORD) as served:
        yield served


def test_a_token_is_fetched_where_the_registry_says(platform: Platform, served: Served, layout: Path) -> None:
    served.push(layout, "team/guarded:1")
    reference = f"{served.host}/team/guarded:1"
    for words, text in (((), None), (("--username", USER, "--password-stdin"), "wrong\n")):
        refused = sandlotd(platform, "pull", reference, "--insecure", *words, text=text)
        assert (refused.returncode, "unauthorized" in refused.stderr) == (1, True), refused.stderr
    known = ("--name", "guarded", "--username", USER, "--password-stdin")
    done(platform, "pull", reference, "--insecure", *known, text=f"{PASSWORD}\n")
    assert "guarded:latest" in images(platform)
    assert said(platform, "guarded", "/say", "in") == "[in] /srv 1234 blue true\n"
