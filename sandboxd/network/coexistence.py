"""Other firewalls of the host: Docker, ufw and firewalld drop what they did not invite.

An accept of our own table can't overrule another's drop. In iptables' chains, which are made to be shared, we insert
three rules of our own; elsewhere we say what to do.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from netpolicy.firewall import FirewallError, run_nft

_DOCKERS = "DOCKER-USER"
_FORWARD = "FORWARD"


def legacy_tables() -> bool:
    """Whether iptables' old kernel tables are in use, which nftables' generation does not count."""
    try:
        return "filter" in Path("/proc/thread-self/net/ip_tables_names").read_text().split()
    except OSError:
        return False


def accept_forwarding(link: str, owner: str) -> None:
    """Insert our rules where iptables' FORWARD chain drops or rejects anything. Idempotent."""
    chain = _chain()
    if chain is None:
        return
    for rule in _rules(link, owner):
        if _iptables("-C", chain, *rule) is None and _iptables("-I", chain, *rule) is None:
            raise FirewallError(f"iptables refuses a rule for {link} in {chain}")


def withdraw(link: str, owner: str) -> None:
    """Delete our rules from iptables' chains. Idempotent."""
    for chain in (_DOCKERS, _FORWARD):
        for rule in _rules(link, owner):
            while _iptables("-D", chain, *rule) is not None:
                pass


def problems(link: str, owner: str) -> list[str]:
    """Say which firewall in the way is not ours to change."""
    found: list[str] = []
    shared = _chain()
    if shared is not None and any(_iptables("-C", shared, *rule) is None for rule in _rules(link, owner)):
        found.append(
            f"iptables' chain {shared} lost the rules that let {link} through: the next repair puts them back."
        )
    for chain in _forward_chains():
        table = f"{chain['family']} {chain['table']}"
        if chain["table"] == owner or (table == "ip filter" and shutil.which("iptables") is not None):
            continue
        if chain["table"] == "firewalld":
            found.append(
                "firewalld rejects what it does not know: "
                f"firewall-cmd --permanent --zone=trusted --add-interface={link} && firewall-cmd --reload"
            )
        elif chain.get("policy") == "drop":
            found.append(
                f"The nftables chain `{table} {chain['name']}` drops forwarded packets: add the rules "
                f'`iifname "{link}" accept`, `oifname "{link}" ct state established,related accept` and, for tunnels, '
                f'`oifname "{link}" ct status dnat accept` to it.'
            )
    return found


def _chain() -> str | None:
    """Return the chain of iptables that our rules belong in; None if nothing there is in the way."""
    listed = _iptables("-S", _FORWARD)
    if listed is None or (listed.split("\n")[0] == f"-P {_FORWARD} ACCEPT" and listed.count("\n") <= 1):
        return None
    return _DOCKERS if _iptables("-S", _DOCKERS) is not None else _FORWARD


def _rules(link: str, owner: str) -> list[list[str]]:
    comment = ["-m", "comment", "--comment", owner]
    return [
        ["-i", link, *comment, "-j", "ACCEPT"],
        ["-o", link, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", *comment, "-j", "ACCEPT"],
        # What our own table has turned to the router, tunnels alone: it drops whatever else goes there.
        ["-o", link, "-m", "conntrack", "--ctstate", "DNAT", *comment, "-j", "ACCEPT"],
    ]


def _iptables(*arguments: str) -> str | None:
    """Return what iptables prints; None if it is not there or says no."""
    if shutil.which("iptables") is None:
        return None
    done = subprocess.run(["iptables", "-w", "5", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _forward_chains() -> list[dict[str, Any]]:
    listed = json.loads(run_nft("-j", "list", "chains"))
    chains = [entry["chain"] for entry in listed.get("nftables", []) if "chain" in entry]
    return [chain for chain in chains if chain.get("hook") == "forward"]
