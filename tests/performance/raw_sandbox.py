"""Sandboxes by runsc alone: the same bundle, slot and guest, without any of our programs around them."""

import asyncio
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from control_socket import run
from sandboxd.cgroups import Cgroups
from sandboxd.contract.ids import new_id
from sandboxd.contract.messages import EgressSpec, Resources
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.network.base import Slot
from sandboxd.network.kernel import KernelNetwork
from sandboxd.runtime import bundle
from sandboxd.runtime.base import Launch
from sandboxd.runtime.control import Places

TOKEN = "00" * 32
"""The guest's token in raw sandboxes: nothing else reaches them."""


@dataclass(frozen=True, slots=True)
class RawSandbox:
    """One running sandbox and how long runsc took for it."""

    id: str
    slot: Slot
    control_socket: Path
    create_seconds: float
    start_seconds: float
    command_cpu_seconds: float
    """Of the two runsc commands."""

    def exec(self, argv: list[str]) -> bytes:
        """Run a program by the control socket; its output."""
        code, output = run(self.control_socket, self.id, argv)
        if code != 0:
            raise RuntimeError(f"{argv} ended with {code}: {output!r}")
        return output


class RawBox:
    """A network and a runsc root of its own for raw sandboxes."""

    def __init__(self, directory: Path, cache: Path, instance: str, network: KernelNetwork, cgroups: Cgroups) -> None:
        self.instance = instance
        self._runsc = (cache / "runsc" / "current" / "runsc").resolve()
        self._guest = (cache / "guest" / "current").resolve()
        self._image = (cache / "images" / "base.erofs").resolve()
        self._directory = directory
        self._places = Places(directory)
        self._network = network
        self.network = network
        """For what is measured of it."""
        self.router_pin = directory / "netns" / "router"
        self._cgroups = cgroups
        self.live: list[RawSandbox] = []

    def prepare(self) -> None:
        self._places.make()
        self._cgroups.set_up(256 * bundle.MIB)

    async def create(self, resources: Resources | None = None) -> RawSandbox:
        """Run `runsc create` and `runsc start` for a new sandbox."""
        sandbox_id = new_id("sbx", os.urandom)
        slot = await self._network.acquire(sandbox_id)
        await self._network.apply_egress(slot, EgressSpec(mode="blocked"))
        return await asyncio.to_thread(self._create, sandbox_id, slot, resources or Resources())

    def _create(self, sandbox_id: str, slot: Slot, resources: Resources) -> RawSandbox:
        upper = self._directory / "upper" / sandbox_id
        upper.mkdir(parents=True)
        launch = Launch(
            sandbox_id=sandbox_id,
            image_path=self._image,
            hostname="raw",
            resources=resources,
            netns_path=slot.netns_path,
            address=slot.address,
            peer=slot.peer,
            upper_dir=upper,
            guest_dir=self._guest,
            token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
            backstop_seconds=None,
        )
        configuration = bundle.configuration(
            launch, self._places.empty_root(sandbox_id), self._cgroups.path(sandbox_id)
        )
        self._places.write_bundle(sandbox_id, configuration)
        self._cgroups.make(sandbox_id, bundle.limits_at_create(resources))
        flags = bundle.flags(self._places.root, self._places.panic_log(sandbox_id), launch)
        used = os.times()
        begun = time.perf_counter()
        self._command([*flags, "create", f"--bundle={self._places.bundle(sandbox_id)}", sandbox_id])
        created = time.perf_counter()
        self._cgroups.limit(sandbox_id, bundle.limits(resources))
        self._command([f"--root={self._places.root}", "start", sandbox_id])
        started = time.perf_counter()
        after = os.times()
        commands = (after.children_user + after.children_system) - (used.children_user + used.children_system)
        sandbox = RawSandbox(
            sandbox_id,
            slot,
            self._places.root / f"runsc-{sandbox_id}.sock",
            created - begun,
            started - created,
            commands,
        )
        self.live.append(sandbox)
        return sandbox

    def _command(self, arguments: list[str]) -> None:
        subprocess.run(
            [str(self._runsc), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def cpu_when_serving(self, sandbox: RawSandbox) -> float:
        """Return the CPU seconds of sentry, gofer and guest once the guest takes connections."""
        loop = asyncio.get_running_loop()
        while True:
            with self._network.open_socket() as probe:
                try:
                    await loop.sock_connect(probe, (sandbox.slot.address, GUEST_PORT))
                except OSError:
                    await asyncio.sleep(0.005)
                    continue
            meters = self._cgroups.meters(sandbox.id)
            return meters.cpu_used_seconds if meters else 0

    def socket_for(self, _address: object) -> socket.socket:
        """Return a socket that reaches raw sandboxes."""
        return self._network.open_socket()

    def process_id(self) -> str:
        return new_id("prc", os.urandom)

    def init_of(self, sandbox: RawSandbox) -> dict[str, object]:
        """Return what the guest has to be told before it starts anything."""
        return {
            "hostname": "raw",
            "env": {},
            "image_env": {},
            "address": sandbox.slot.address,
            "gateway": sandbox.slot.peer,
            "resolvers": [],
            "max_processes": 1024,
            "memory_bytes": 1 << 30,
            "now_us": time.time_ns() // 1000,
            "seed_base64": "",
        }

    async def remove(self, sandbox: RawSandbox) -> None:
        await self._cgroups.end(sandbox.id)
        self._places.forget(sandbox.id)
        await self._network.release(sandbox.id, sandbox.slot.index)
        self.live.remove(sandbox)

    async def clear(self) -> None:
        for sandbox in list(self.live):
            await self.remove(sandbox)
        await self._cgroups.remove_all()
        self._places.clear()


@asynccontextmanager
async def raw_box(directory: Path, cache: Path, instance: str = "raw") -> AsyncGenerator[RawBox]:
    """A box for raw sandboxes; everything of it is gone afterwards."""
    network = KernelNetwork(instance=instance, netns_dir=directory / "netns", pool_size=4)
    box = RawBox(directory, cache, instance, network, Cgroups(instance))
    await network.start({})
    try:
        box.prepare()
        yield box
    finally:
        await box.clear()
        await network.stop(keep=False)
