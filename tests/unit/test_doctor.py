import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import doctor
from infra.config import LauncherConfig
from infra.doctor import leftovers, machine, network, software
from infra.doctor.findings import Finding, Level, fail, ok, warn
from infra.residue import Residue


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (machine.kernel("6.1.0-18-amd64"), Level.OK),
        (machine.kernel("5.6.0"), Level.OK),
        (machine.kernel("5.4.0-150-generic"), Level.FAIL),
        (machine.kernel("strange"), Level.WARN),
        (machine.architecture("x86_64"), Level.OK),
        (machine.architecture("riscv64"), Level.FAIL),
        (machine.mappings(65_530), Level.OK),
        (machine.mappings(8_192), Level.WARN),
        (machine.controllers("v2", {"cpu", "memory", "pids", "io"}), Level.OK),
        (machine.controllers("v2", {"cpu", "pids"}), Level.FAIL),
        (machine.memory({"MemAvailable": 20_000, "MemTotal": 24_000}), Level.OK),
        (machine.memory({"MemAvailable": 300, "MemTotal": 512}), Level.WARN),
        (machine.disk("data disk", Path("/d"), 100_000, 10**6, 10**6), Level.OK),
        (machine.disk("data disk", Path("/d"), 100, 10**6, 10**6), Level.WARN),
        (machine.disk("data disk", Path("/d"), 100_000, 5, 10**6), Level.WARN),
        (machine.disk("data disk", Path("/d"), 100_000, 0, 0), Level.OK),
        (machine.clock(1_800_000_000, 10, synchronized=True), Level.OK),
        (machine.clock(1_800_000_000, 10, synchronized=False), Level.OK),
        (machine.clock(1_000, 10, synchronized=True), Level.FAIL),
        (machine.account("sandlot", 997), Level.OK),
        (machine.account("toor", 0), Level.FAIL),
        (software.erofs("mkfs.erofs 1.5"), Level.OK),
        (software.erofs("mkfs.erofs 1.4"), Level.WARN),
        (software.runsc_version(Path("/x"), "sandlot-20260905"), Level.OK),
        (software.runsc_version(Path("/x"), "0.0~20240729.0"), Level.FAIL),
        (software.runsc_version(Path("/x"), None), Level.FAIL),
        (software.runsc_features("-allow-suid -overlay2 -platform systrap"), Level.OK),
        (software.runsc_features("-overlay2 systrap"), Level.FAIL),
        (software.built_guest("aa", "aa"), Level.OK),
        (software.built_guest("aa", "bb"), Level.WARN),
        (software.built_guest(None, "bb"), Level.FAIL),
        (network.nft_answer(0, ""), Level.OK),
        (network.nft_answer(1, "Error: Could not process rule\n more"), Level.FAIL),
        (network.namespace("user namespace", None, "fix"), Level.OK),
        (network.namespace("user namespace", "Operation not permitted", "fix"), Level.FAIL),
        (network.forwarding("0", "2", enabled=True), Level.OK),
        (network.forwarding("0", "0", enabled=False), Level.WARN),
        (network.firewalls([], ["Docker"]), Level.OK),
        (network.firewalls(["The chain drops: add a rule."], ["Docker"]), Level.WARN),
        (network.port("127.0.0.1", 7070, None, ours=False), Level.OK),
        (network.port("127.0.0.1", 7070, "Address already in use", ours=True), Level.OK),
        (network.port("127.0.0.1", 7070, "Address already in use", ours=False), Level.FAIL),
        (leftovers.leftovers(set(), up=False), Level.OK),
        (leftovers.leftovers({Residue("link", "slx")}, up=True), Level.OK),
        (leftovers.leftovers({Residue("link", "slx")}, up=False), Level.WARN),
    ],
)
def test_finding(finding: Finding, level: Level) -> None:
    assert finding.level is level
    assert finding.fact
    assert (level is Level.OK) == (not finding.fix), "what is not well names its fix"
    assert "\n" not in doctor.line(finding)


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken(_config: LauncherConfig) -> Iterator[Finding]:
        yield ok("first", "fine")
        raise OSError("gone")

    def whole(_config: LauncherConfig) -> Iterator[Finding]:
        yield warn("second", "hm", "do it")

    found = doctor.examine(LauncherConfig(), [broken, whole])
    assert [finding.level for finding in found] == [Level.OK, Level.FAIL, Level.WARN]


@pytest.mark.parametrize(("finding", "status"), [(fail("x", "y", "z"), 1), (warn("x", "y", "z"), 0), (ok("x", "y"), 0)])
def test_report_status(
    finding: Finding, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def examined(_config: LauncherConfig) -> list[Finding]:
        return [finding]

    monkeypatch.setattr(doctor, "examine", examined)
    assert doctor.report(LauncherConfig(), as_json=True) == status
    assert json.loads(capsys.readouterr().out)["level"] == finding.level.value


def test_doctor_sees_this_machine() -> None:
    broken = [finding for finding in doctor.examine(LauncherConfig()) if "the check broke" in finding.fact]
    assert not broken


def test_a_node_agent_without_a_launcher_is_up(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    assert not leftovers.listens(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert not leftovers.listens(path)
        listener.listen()
        assert leftovers.listens(path)
    assert not leftovers.listens(path)
