"""The operate page knows every check of doctor, every command of `sandlotd`, and every reason it explains is one."""

import re
import subprocess
import sys
from typing import Final

from typer.core import TyperGroup
from typer.main import get_command

from infra.sandlotd import app
from infra.setup.places import REPOSITORY
from sandboxd.contract.reasons import SandboxReason

PAGE: Final = (REPOSITORY / "docs" / "operate.md").read_text()


def section(title: str) -> str:
    (found,) = re.findall(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return found


def test_every_check_of_doctor_has_its_longer_answer() -> None:
    sources = "".join(path.read_text() for path in (REPOSITORY / "infra" / "doctor").glob("*.py"))
    named = set(re.findall(r"\b(?:ok|warn|fail)\(\s*\"([a-z A-Z-]+)\"", sources))
    named |= set(re.findall(r"\bnamespace\(\s*\"([a-z ]+)\"", sources)) | {"data disk", "cache disk"}
    assert len(named) > 15
    table = section("Findings of doctor")
    assert [name for name in sorted(named) if f"`{name}`" not in table] == []


def test_every_command_is_there() -> None:
    new = {"backup", "restore", "logs", "support", "uninstall", "install-units", "key"}
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    assert new <= set(group.commands)
    assert [name for name in sorted(new) if f"sandlotd {name}" not in PAGE] == []


def test_reasons_are_reasons() -> None:
    named = set(
        re.findall(
            r"`([a-z_]+)`",
            "".join(line.split("|")[1] for line in section("Sandboxes fail").splitlines() if line.startswith("| `")),
        )
    )
    assert named
    assert named <= {reason.value for reason in SandboxReason}


def test_the_command_does_not_load_what_only_the_api_needs() -> None:
    code = "import infra.sandlotd, sys; sys.exit('sqlalchemy' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
