"""Rules in iptables' shared chains: put in where something drops, once, and taken out again."""

import json
import stat
import sys
from pathlib import Path

import pytest

from sandboxd.network import coexistence

LINK = "slhd"
OWNER = "sandlot_hd"

# Keeps chains in a file as iptables lists them, and knows the commands that are used.
_IPTABLES = """#!{python}
import json, pathlib, sys
state = pathlib.Path({state!r})
chains = json.loads(state.read_text())
command, chain, *rule = sys.argv[3:]
if chain not in chains:
    sys.exit(1)
policy, rules = chains[chain]
text = " ".join(rule)
if command == "-S":
    print(f"-P {{chain}} {{policy}}" if policy else f"-N {{chain}}")
    print("".join(f"-A {{chain}} {{one}}\\n" for one in rules), end="")
elif command == "-I":
    rules.insert(0, text)
elif text not in rules:
    sys.exit(1)
elif command == "-D":
    rules.remove(text)
state.write_text(json.dumps(chains))
"""


class Iptables:
    def __init__(self, directory: Path) -> None:
        self._state = directory / "chains.json"
        program = directory / "iptables"
        program.write_text(_IPTABLES.format(python=sys.executable, state=str(self._state)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def set(self, **chains: tuple[str, list[str]]) -> None:
        self._state.write_text(json.dumps({name.replace("_", "-"): chain for name, chain in chains.items()}))

    def rules(self, chain: str) -> list[str]:
        return json.loads(self._state.read_text())[chain][1]


@pytest.fixture
def iptables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iptables:
    made = Iptables(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin")
    return made


def test_an_accepting_chain_is_left_alone(iptables: Iptables) -> None:
    iptables.set(FORWARD=("ACCEPT", []))
    coexistence.accept_forwarding(LINK, OWNER)
    assert iptables.rules("FORWARD") == []


@pytest.mark.parametrize("chain", [("DROP", []), ("ACCEPT", ["-j REJECT"])])
def test_a_dropping_chain_lets_us_through_once(iptables: Iptables, chain: tuple[str, list[str]]) -> None:
    iptables.set(FORWARD=chain)
    assert any("FORWARD" in problem for problem in coexistence.problems(LINK, OWNER))
    coexistence.accept_forwarding(LINK, OWNER)
    coexistence.accept_forwarding(LINK, OWNER)
    ours = [rule for rule in iptables.rules("FORWARD") if OWNER in rule]
    assert len(ours) == 3
    assert iptables.rules("FORWARD")[:3] == ours
    assert coexistence.problems(LINK, OWNER) == []
    coexistence.withdraw(LINK, OWNER)
    coexistence.withdraw(LINK, OWNER)
    assert iptables.rules("FORWARD") == chain[1]


def test_dockers_chain_is_preferred(iptables: Iptables) -> None:
    iptables.set(FORWARD=("DROP", ["-j DOCKER-USER"]), DOCKER_USER=("", []))
    coexistence.accept_forwarding(LINK, OWNER)
    assert iptables.rules("FORWARD") == ["-j DOCKER-USER"]
    assert len(iptables.rules("DOCKER-USER")) == 3
    coexistence.withdraw(LINK, OWNER)
    assert iptables.rules("DOCKER-USER") == []


def test_without_iptables_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    coexistence.accept_forwarding(LINK, OWNER)
    coexistence.withdraw(LINK, OWNER)
