"""The client's guide prints what it says, here against the stub."""

import pytest

import guide_stand
from stub_api import running


def test_python_examples_print_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as api:
        api.on_start = guide_stand.act_here
        monkeypatch.setenv("SANDLOT_URL", api.url)
        monkeypatch.setenv("SANDLOT_API_KEY", api.key)
        assert guide_stand.session() == ""


def test_shell_examples_print_what_they_say() -> None:
    with running() as api:
        api.on_start = guide_stand.act_here
        environment = {"SANDLOT_URL": api.url, "SANDLOT_API_KEY": api.key, "XDG_CONFIG_HOME": "/nonexistent"}
        assert guide_stand.console(environment) == []
