"""Removes what the node made in the kernel, when no node agent runs: leftover sandboxes, slots, rules, cgroups.

`python -m infra.launcher.teardown`, a process of its own, because the runtime awaits children of its own.
"""

import asyncio
import shutil

from infra.config import LauncherConfig
from sandboxd.cgroups import Cgroups
from sandboxd.guest_client.fake import FakeGuest
from sandboxd.network.kernel import KernelNetwork
from sandboxd.runtime.runsc import RunscRuntime


async def teardown(config: LauncherConfig) -> None:
    """Undo everything. Each part goes on when another fails; the failures are raised together."""
    runtime = RunscRuntime(
        runsc=config.runsc_path,
        run_dir=config.run_dir,
        cgroups=Cgroups(config.instance),
        connect=lambda _address, _token: FakeGuest(),
    )
    network = KernelNetwork(instance=config.instance, netns_dir=config.netns_dir)
    failures: list[Exception] = []
    for part in (_runtime_part(runtime), _network_part(network)):
        try:
            await part
        except Exception as error:  # noqa: BLE001 - reported below, after the other parts had their turn
            failures.append(error)
    shutil.rmtree(config.data_dir / "upper", ignore_errors=True)
    if failures:
        raise ExceptionGroup("not everything could be removed", failures)


async def _runtime_part(runtime: RunscRuntime) -> None:
    await runtime.open()
    try:
        for sandbox_id in await runtime.known():
            await runtime.remove(sandbox_id)
        await runtime.clear()
    finally:
        await runtime.close()


async def _network_part(network: KernelNetwork) -> None:
    await network.start({})
    await network.stop(keep=False)


if __name__ == "__main__":
    asyncio.run(teardown(LauncherConfig()))
