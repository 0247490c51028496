"""What it costs to put a secret into requests: beside the same connection through the proxy, end to end.

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
from injection_kit import authority, credentials
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
REQUESTS: Final = 1000
AT_ONCE: Final = 8
CONNECTIONS: Final = 100
_INSTANCE: Final = "binject"
_LOAD: Final = str(Path(__file__).parent / "inject_load.py")
_LIMITS: Final = {"connections": 1024, "new_connections_per_second": 1000}
_ENTRY: Final = {"host": "api.test", "header": "authorization", "value_from": {"secret": "token"}}


@dataclass
class _Scene:
    network: KernelNetwork
    slot: Slot
    home: Path

    async def by_turns(self, *load: str) -> tuple[float, float]:
        """Return what a client measured with a secret put in, and end to end."""
        injected: list[float] = []
        through: list[float] = []
        for _ in range(ROUNDS):
            injected.append(await self._measured("project", {"inject": [_ENTRY]}, load))
            through.append(await self._measured("outer", {"allow": ["api.test"]}, load))
        return median(injected), median(through)

    async def _measured(self, trusted: str, policy: dict[str, Any], load: tuple[str, ...]) -> float:
        spec = EgressSpec.model_validate({"mode": "allowlist", "limits": _LIMITS} | policy)
        await self.network.apply_egress(self.slot, spec, credentials(_PROJECT))
        argv = [sys.executable, _LOAD, load[0], PUBLIC, str(self.home / f"{trusted}.pem"), *load[1:]]
        return json.loads(await asyncio.to_thread(World.run_inside, self.slot.netns_path, argv))


_PROJECT: Final = authority("project")


async def inject(platform: Platform, raw: RawBox) -> list[Row]:
    """Latency, requests and connections, turn by turn."""
    del platform, raw
    async with _scene() as scene:
        latency = await scene.by_turns("latency", str(REQUESTS))
        rate = await scene.by_turns("rate", str(REQUESTS), str(AT_ONCE))
        fresh = await scene.by_turns("fresh", str(CONNECTIONS))
    beside = "the same end to end through the proxy"
    return [
        Row(
            name="HTTPS request into which a secret is put, one after the other, p50", unit="ms", value=latency[0],
            baseline=latency[1], baseline_name=beside, note=f"{latency[0] - latency[1]:.2f} ms more",
        ),
        Row(
            name=f"such requests over {AT_ONCE} connections", unit="/s", value=rate[0], baseline=rate[1],
            baseline_name=beside, more_is_better=True,
        ),
        Row(
            name="such connections with one request each, one after the other", unit="/s", value=fresh[0],
            baseline=fresh[1], baseline_name=beside, more_is_better=True,
        ),
    ]  # fmt: skip


@asynccontextmanager
async def _scene() -> AsyncGenerator[_Scene]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        home = Path(directory)
        outer = authority("outer")
        (home / "outer.pem").write_text(outer.certificate)
        (home / "project.pem").write_text(_PROJECT.certificate)
        outer.issue(home, "api.test")
        cgroups = Cgroups(_INSTANCE)
        cgroups.set_up(0)
        births = {
            name: RouterBirth(name, cgroups=cgroups, router_pin=home / "netns" / "router", empty=home / "empty")
            for name in USERS
        }
        zone = Zone(names={"api.test": [PUBLIC]}, ttl=3600)
        programs = NamePrograms(dict(births), ZoneRelay(zone), outer.certificate)
        with World(home, ports=(22,)) as world:
            network = KernelNetwork(
                instance="bi", netns_dir=home / "netns", pool_size=1, host_netns=world.host_netns, names=programs
            )
            server = await asyncio.to_thread(World.do, world.internet_netns, lambda: _serve(home / "api.test.pem"))
            try:
                await network.start({})
                async with programs.opened():
                    for program in programs.programs.values():
                        await program.up.wait()
                    yield _Scene(network, await network.acquire("a"), home)
            finally:
                server.kill()
                server.wait()
                if server.stdout is not None:
                    server.stdout.close()
                await network.stop(keep=False)
                await cgroups.remove_all()


def _serve(chain: Path) -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, _LOAD, "serve", PUBLIC, str(chain)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    return server
