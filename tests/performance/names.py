"""What names cost: connections through the proxy, connections that wait, questions to the resolver; each beside direct.

In a world of namespaces with the real table and programs, one slot, no runsc: what is measured is the router's side.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness import Platform
from names_kit import Zone, ZoneRelay
from network_world import PUBLIC, World
from raw_sandbox import RawBox
from report import Row, median
from sandboxd.cgroups import Cgroups
from sandboxd.contract.messages import EgressSpec
from sandboxd.network.base import Slot
from sandboxd.network.births import USERS, RouterBirth
from sandboxd.network.kernel import KernelNetwork
from sandboxd.network.names import NamePrograms

ROUNDS: Final = 5
CONNECTIONS: Final = 300
QUESTIONS: Final = 5000
DOWNLOAD_MIB: Final = 400
IDLE: Final = 5000
_INSTANCE: Final = "bnames"
_LIMITS: Final = {"connections": 8192, "new_connections_per_second": 1000}
_LOAD: Final = str(Path(__file__).parent / "names_load.py")
_UNPACED: Final = (
    "import sys; from netpolicy import birth, resolver; resolver._PER_SECOND = resolver._BURST = 1e9;"
    "birth.main(sys.argv[1:])"
)


class _UnpacedBirth(RouterBirth):
    """A resolver that lets one sandbox ask as much as it likes."""

    def _command(self) -> list[str]:
        _, isolated, *rest = super()._command()
        return [sys.executable, isolated, "-c", _UNPACED, *rest[2:]]


@dataclass
class _Scene:
    world: World
    network: KernelNetwork
    cgroups: Cgroups
    slot: Slot

    async def load(self, *arguments: str) -> float:
        """Run a client where the sandbox's programs are; return what it measured."""
        argv = [sys.executable, _LOAD, *arguments]
        return json.loads(await asyncio.to_thread(World.run_inside, self.slot.netns_path, argv))

    async def names(self) -> None:
        await self._apply({"mode": "allowlist", "allow": ["pkg.test"]})

    async def addresses(self) -> None:
        await self._apply({"mode": "allowlist", "allow": [f"{PUBLIC}"]})

    async def _apply(self, policy: dict[str, Any]) -> None:
        await self.network.apply_egress(self.slot, EgressSpec.model_validate(policy | {"limits": _LIMITS}))

    def rss_mib(self, program: str) -> float:
        (pid,) = self.cgroups._tree.members(f"sandlot-{_INSTANCE}/programs/{program}")
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


async def names(platform: Platform, raw: RawBox) -> list[Row]:
    """Through the programs, and by address beside them, turn by turn."""
    del platform, raw
    async with _scene() as scene:
        return [
            await _connections(scene), await _download(scene), await _questions(scene), await _idle(scene),
        ]  # fmt: skip


async def _connections(scene: _Scene) -> Row:
    through, direct = await _by_turns(scene, "connections", PUBLIC, str(CONNECTIONS))
    return Row(
        name="connections with one request each, through the proxy", unit="/s", value=through, baseline=direct,
        baseline_name="the same by address", more_is_better=True,
    )  # fmt: skip


async def _download(scene: _Scene) -> Row:
    through, direct = await _by_turns(scene, "download", PUBLIC, str(DOWNLOAD_MIB))
    return Row(
        name="one download through the proxy", unit="MiB/s", value=through, baseline=direct,
        baseline_name="the same by address", more_is_better=True,
    )  # fmt: skip


async def _questions(scene: _Scene) -> Row:
    asked: list[float] = []
    echoed: list[float] = []
    for _ in range(ROUNDS):
        await scene.names()
        asked.append(await scene.load("questions", "1.1.1.1", "53", str(QUESTIONS)))
        await scene.addresses()
        echoed.append(await scene.load("questions", PUBLIC, "9", str(QUESTIONS)))
    return Row(
        name="questions to the resolver for one known name", unit="/s", value=median(asked), baseline=median(echoed),
        baseline_name="UDP echo in Python", more_is_better=True,
    )  # fmt: skip


async def _idle(scene: _Scene) -> Row:
    await scene.names()
    before = scene.rss_mib("proxy")
    argv = [sys.executable, _LOAD, "hold", PUBLIC, str(IDLE)]
    holder = await asyncio.to_thread(
        World.do,
        scene.slot.netns_path,
        lambda: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True),
    )
    assert holder.stdout is not None
    said = await asyncio.to_thread(holder.stdout.readline)
    if said != "holding\n":
        raise RuntimeError(f"{IDLE} connections could not be held: {said!r}")
    after = scene.rss_mib("proxy")
    await asyncio.to_thread(holder.communicate)
    return Row(
        name=f"memory of the proxy with {IDLE} idle connections", unit="MiB", value=after, baseline=before,
        baseline_name="with none", note=f"{(after - before) * 1024 / IDLE:.1f} KiB each",
    )  # fmt: skip


async def _by_turns(scene: _Scene, *load: str) -> tuple[float, float]:
    through: list[float] = []
    direct: list[float] = []
    for _ in range(ROUNDS):
        await scene.names()
        through.append(await scene.load(*load))
        await scene.addresses()
        direct.append(await scene.load(*load))
    return median(through), median(direct)


@asynccontextmanager
async def _scene() -> AsyncGenerator[_Scene]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        home = Path(directory)
        cgroups = Cgroups(_INSTANCE)
        cgroups.set_up(0)
        kinds = {"resolver": _UnpacedBirth, "proxy": RouterBirth}
        births = {
            name: kinds[name](name, cgroups=cgroups, router_pin=home / "netns" / "router", empty=home / "empty")
            for name in USERS
        }
        zone = Zone(names={"pkg.test": [PUBLIC]}, ttl=3600)
        programs = NamePrograms(dict(births), ZoneRelay(zone))
        with _quiet_world(home) as world:
            network = KernelNetwork(
                instance="bn", netns_dir=home / "netns", pool_size=1, host_netns=world.host_netns, names=programs
            )
            server = await asyncio.to_thread(World.do, world.internet_netns, _serve)
            try:
                await network.start({})
                async with programs.opened():
                    for program in programs.programs.values():
                        await program.up.wait()
                    yield _Scene(world, network, cgroups, await network.acquire("a"))
            finally:
                server.kill()
                server.wait()
                if server.stdout is not None:
                    server.stdout.close()
                await network.stop(keep=False)
                await cgroups.remove_all()


def _serve() -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, _LOAD, "serve", PUBLIC], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    return server


def _quiet_world(home: Path) -> World:
    """Return a world whose internet has no servers but ours."""
    return World(home, ports=(22,))
