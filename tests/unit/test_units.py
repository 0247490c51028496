"""The systemd units: whole, valid, and theirs alone to install and remove."""

import configparser
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from infra.config import LauncherConfig
from infra.launcher import units

CONFIG = LauncherConfig(instance="other", data_dir=Path("/srv/other"), run_dir=Path("/run/other"))
NAMES = {
    "sandlot-other.target",
    "sandlot-other-api.service",
    "sandlot-other-node.service",
    "sandlot-other-gateway.service",
    "sandlot.slice",
}
MOUNTING = re.compile(
    r"^(Protect(System|Home|Kernel|Control|Proc|Clock)|Private(Tmp|Devices|Mounts|Users|Network)|ReadWritePaths"
    r"|ReadOnlyPaths|InaccessiblePaths|TemporaryFileSystem|BindPaths|MountFlags|RootDirectory|ProcSubset)"
)
FILTERING = re.compile(r"^(SystemCall|Restrict|LockPersonality|MemoryDenyWriteExecute)")


@pytest.fixture(autouse=True)
def _open_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever these sources lie, the units would be of an installation that everybody may read."""
    monkeypatch.setattr(units, "closed_ancestors", lambda _needed: {})  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType] - stands for a function


def sections(text: str) -> dict[str, dict[str, list[str]]]:
    """Read a unit: an option may stand more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif line and not line.startswith("#"):
            option, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(section, {}).setdefault(option, []).append(value)
    return found


def test_every_word_is_filled_in() -> None:
    assert set(units.rendered(CONFIG)) == NAMES
    for text in units.rendered(CONFIG).values():
        assert not re.search(r"@[A-Z_]+@", text)
        assert sections(text)


def test_names_of_the_default_instance_are_plain() -> None:
    assert set(units.rendered(LauncherConfig())) == {
        "sandlot.target",
        "sandlot-api.service",
        "sandlot-node.service",
        "sandlot-gateway.service",
        "sandlot.slice",
    }


def test_the_node_has_nothing_that_its_sandboxes_would_suffer_from() -> None:
    """A mount namespace of its own would lose the pins at a restart; a seccomp filter is inherited by every sandbox."""
    options = sections(units.rendered(CONFIG)["sandlot-other-node.service"])["Service"]
    assert [option for option in options if MOUNTING.match(option) or FILTERING.match(option)] == []
    assert options["KillMode"] == ["process"]
    assert options["RuntimeDirectoryPreserve"] == ["yes"]
    assert options["RuntimeDirectory"] == ["other"]


def test_the_api_can_write_only_its_instances_directories() -> None:
    options = sections(units.rendered(CONFIG)["sandlot-other-api.service"])["Service"]
    assert options["ProtectSystem"] == ["strict"]
    assert options["ReadWritePaths"] == ["/srv/other /run/other"]
    assert "CAP_SYS_ADMIN" not in options["CapabilityBoundingSet"][0]


def test_the_target_brings_both_and_takes_both_with_it() -> None:
    texts = units.rendered(CONFIG)
    programs = {name for name in texts if name.endswith(".service")}
    target = sections(texts["sandlot-other.target"])
    assert set(target["Unit"]["Wants"][0].split()) == programs
    assert target["Install"]["WantedBy"] == ["multi-user.target"]
    for name in programs:
        assert sections(texts[name])["Unit"]["PartOf"] == ["sandlot-other.target"]
        assert "Install" not in sections(texts[name])  # enabling the target is enough, and the only way


def test_what_they_start_is_there() -> None:
    for name in ("sandlot-other-api.service", "sandlot-other-node.service"):
        options = sections(units.rendered(CONFIG)[name])["Service"]
        for command in options["ExecStart"] + options["ExecStartPost"]:
            assert Path(command.split()[0]).is_file()


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """By its own verifier where it is installed; its grammar is held by the tests above everywhere."""
    texts = units.rendered(CONFIG, tmp_path)
    (tmp_path / "other.env").touch()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(text)
        assert set(parser.sections()) <= {"Unit", "Service", "Install", "Slice"}
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in texts)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "sandlot" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_installed_and_removed(tmp_path: Path) -> None:
    unit_dir, env_dir = tmp_path / "units", tmp_path / "etc"
    unit_dir.mkdir()
    env = {"SANDLOT_MAX_SANDBOXES": "7", "SANDLOT_API_KEY": "sandlot_x", "SANDLOT_NODE_NAME": 'a "b" c', "HOME": "/x"}
    written = units.install(CONFIG, env, unit_dir=unit_dir, env_dir=env_dir)
    assert {path.name for path in written} == NAMES | {"other.env"}
    settings = env_dir / "other.env"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    text = settings.read_text()
    assert "SANDLOT_MAX_SANDBOXES=7\n" in text
    assert 'SANDLOT_NODE_NAME="a \\"b\\" c"\n' in text
    assert "SANDLOT_INSTANCE=other\n" in text
    assert "sandlot_x" not in text
    assert "HOME" not in text
    settings.write_text("SANDLOT_INSTANCE=other\n")
    units.install(CONFIG, env, unit_dir=unit_dir, env_dir=env_dir)
    assert settings.read_text() == "SANDLOT_INSTANCE=other\n"  # an operator's own file is not touched
    (unit_dir / "sandlot-api.service").touch()  # of another instance
    assert {path.name for path in units.remove(CONFIG, unit_dir=unit_dir)} == NAMES - {"sandlot.slice"}
    assert {path.name for path in unit_dir.iterdir()} == {"sandlot-api.service", "sandlot.slice"}
    (unit_dir / "sandlot-api.service").unlink()
    assert units.remove(CONFIG, unit_dir=unit_dir) == []
    units.install(CONFIG, env, unit_dir=unit_dir, env_dir=env_dir)
    assert {path.name for path in units.remove(CONFIG, unit_dir=unit_dir)} == NAMES
    assert list(unit_dir.iterdir()) == []
