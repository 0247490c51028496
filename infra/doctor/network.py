"""Checks of nft, namespaces, forwarding, other firewalls and the port."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from infra.config import LauncherConfig
from infra.doctor.findings import Finding, fail, ok, warn
from infra.launcher import lock
from sandboxd.network import coexistence

_NET = Path("/proc/sys/net/ipv4")


def table_checks(_config: LauncherConfig) -> Iterator[Finding]:
    """Load a table in check mode: the kernel's answer, and nothing is changed."""
    if shutil.which("nft") is None:
        yield fail("nft", "missing", "apt-get install nftables")
        return
    rules = (
        "table inet sandlot_doctor {\n"
        "set pairs { type ifname . ipv4_addr; flags interval; }\n"
        "chain forward { type filter hook forward priority 0; iifname . ip daddr @pairs ct state new accept; }\n"
        "chain nat { type nat hook postrouting priority 100; masquerade; }\n"
        "chain local { type filter hook prerouting priority 0; fib daddr type local drop; }\n}\n"
    )
    done = subprocess.run(["nft", "--check", "--file", "-"], input=rules, capture_output=True, text=True, check=False)
    yield nft_answer(done.returncode, done.stderr)


def nft_answer(status: int, said: str) -> Finding:
    if status == 0:
        return ok("nft", "sets of interface and address, nat, fib")
    first = said.strip().splitlines()[0] if said.strip() else f"status {status}"
    return fail("nft", first, "the kernel needs nf_tables with nat and fib (modules nft_chain_nat, nft_fib_inet)")


def namespace_checks(_config: LauncherConfig) -> Iterator[Finding]:
    """Make a namespace with a link pair inside it, and a user namespace; all are gone when the commands end."""
    pair = ["ip", "link", "add", "sandlot0", "type", "veth", "peer", "name", "sandlot1"]
    yield namespace("network namespace", _refusal(["unshare", "--net", *pair]), "root and the module veth are needed")
    yield namespace(
        "user namespace",
        _refusal(["unshare", "--user", "true"]),
        "not possible inside a chroot; elsewhere: sysctl -w user.max_user_namespaces=65536",
    )


def namespace(check: str, refusal: str | None, fix: str) -> Finding:
    return ok(check, "can be made") if refusal is None else fail(check, refusal, fix)


def _refusal(argv: list[str]) -> str | None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else " ".join(done.stderr.split()) or f"status {done.returncode}"


def forwarding_checks(_config: LauncherConfig) -> Iterator[Finding]:
    yield forwarding(
        (_NET / "conf/all/rp_filter").read_text().strip(),
        (_NET / "conf/default/rp_filter").read_text().strip(),
        enabled=(_NET / "ip_forward").read_text().strip() == "1",
    )


def forwarding(rp_filter_all: str, rp_filter_default: str, *, enabled: bool) -> Finding:
    if not enabled:
        return warn("forwarding", "net.ipv4.ip_forward is 0", "the node turns it on; keep others from turning it off")
    strict = "1" in {rp_filter_all, rp_filter_default}
    return ok("forwarding", f"on, reverse path filter {'strict' if strict else 'loose or off'}")


def firewall_checks(config: LauncherConfig) -> Iterator[Finding]:
    yield firewalls(coexistence.problems(f"sl{config.instance}", f"sandlot_{config.instance}"), active_services())


def active_services() -> list[str]:
    marks = {"Docker": Path("/sys/class/net/docker0"), "firewalld": Path("/run/firewalld.pid")}
    found = [name for name, mark in marks.items() if mark.exists()]
    ufw = Path("/etc/ufw/ufw.conf")
    if ufw.exists() and "ENABLED=yes" in ufw.read_text():
        found.append("ufw")
    return found


def firewalls(problems: list[str], services: list[str]) -> Finding:
    beside = f" (here: {', '.join(services)})" if services else ""
    if problems:
        return warn("firewalls", f"another firewall is in the way of sandboxes{beside}", " ".join(problems))
    return ok("firewalls", f"none in the way of sandboxes{beside}")


def port_checks(config: LauncherConfig) -> Iterator[Finding]:
    up = lock.holder(config.lock_path) is not None
    for host, number, setting in (
        (config.api_host, config.api_port, "SANDLOT_API_PORT"),
        (config.gateway_host, config.gateway_port, "SANDLOT_GATEWAY_PORT"),
    ):
        yield port(host, number, _taken(host, number), ours=up, setting=setting)


def _taken(host: str, number: int) -> str | None:
    """Return why a port cannot be had; None: it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            return error.strerror or str(error)
    return None


def port(host: str, number: int, refusal: str | None, *, ours: bool, setting: str = "SANDLOT_API_PORT") -> Finding:
    if refusal is None:
        return ok("port", f"{host}:{number} is free")
    if ours:
        return ok("port", f"{host}:{number} is used by this instance, which is up")
    return fail("port", f"{host}:{number}: {refusal}", f"end what uses it, or set {setting}")
