"""Names put together: the programs, the kernel's refusals, and the book that both are written into."""

import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from netpolicy.nflog import RefusalLog
from sandboxd.cgroups import Cgroups
from sandboxd.clock import Clock
from sandboxd.config import NodeConfig
from sandboxd.history.decision_store import DecisionStore
from sandboxd.history.decisions import DecisionBook
from sandboxd.manager.manager import Manager
from sandboxd.network.authorities import authorities
from sandboxd.network.births import USERS, RouterBirth
from sandboxd.network.kernel import KernelNetwork
from sandboxd.network.names import NamePrograms
from sandboxd.network.refusals import told
from sandboxd.network.relay import Relay, host_servers

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Naming:
    """What decides names on a real node."""

    programs: NamePrograms
    network: KernelNetwork


def name_programs(config: NodeConfig, cgroups: Cgroups) -> NamePrograms:
    """Make the programs of a node's router namespace."""
    runsc_dir = config.run_dir / "runsc"
    births = {
        name: RouterBirth(name, cgroups=cgroups, router_pin=runsc_dir / "netns" / "router", empty=runsc_dir / "empty")
        for name in USERS
    }
    servers = list(config.upstream_resolvers)
    relay = Relay(lambda: servers or host_servers(), _host_socket)
    return NamePrograms(dict(births), relay, authorities(config.inject_authorities_file))


def decision_book(config: NodeConfig, clock: Clock) -> DecisionBook:
    """Make the book of a node's decisions."""
    store = DecisionStore(config.history_dir / "decisions.db", config.decisions_disk_mib * _MIB)
    return DecisionBook(store, lambda: int(clock.now().timestamp() * 1000), days=config.log_days)


def owners(manager: Manager) -> Mapping[str, str]:
    """Return which living sandbox is at which address."""
    found: dict[str, str] = {}
    for runner in manager.runners.values():
        slot = runner.life.parts.slot
        if slot is not None and not runner.life.ended.is_set():
            found[slot.address] = runner.life.id
    return found


@asynccontextmanager
async def named(naming: Naming | None, book: DecisionBook) -> AsyncGenerator[None]:
    """Have names decided while inside, and what is refused told. The network is started."""
    if naming is None:
        yield
        return
    programs, network = naming.programs, naming.network
    programs.learn = network.learn
    programs.decided = book.take
    refusals = told(
        lambda: network.in_router(RefusalLog),
        lambda address: (programs.policy_of(address), programs.platform),
        book.take,
    )
    async with refusals, programs.opened():
        yield


def _host_socket(kind: socket.SocketKind) -> socket.socket:
    return socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
