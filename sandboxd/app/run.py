"""The node agent as a program: serve until told to stop, or end every sandbox of the node."""

import asyncio
import gc
import os
import sys
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import structlog
from aiohttp import web

from programs.running import run, told_to_end
from sandboxd.app import data_plane, decisions, gateway, history, images, operator, tunnels
from sandboxd.app import node as node_calls
from sandboxd.app.assembly import Node, Parts, opened, real_parts
from sandboxd.app.server import allowed_peers, application, listen, runner
from sandboxd.app.streams import Streams
from sandboxd.config import NodeConfig
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import TERMINAL
from sandboxd.heartbeat import Heartbeat, SocketLink
from sandboxd.manager.manager import StopRequest
from sandboxd.manager.scrub import Scrub
from sandboxd.processes.live import Ending

_log = structlog.get_logger(__name__)

_DOWN_SECONDS: Final = 60.0
_COLLECT_EVERY: Final = 20_000
"""Objects made and not yet gone, by which the collector counts; some of a call's own go in circles."""


def main(config: NodeConfig | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Sandboxes live on."""
    _run(_serve_until_told(config or NodeConfig()), config)


def down(config: NodeConfig | None = None) -> None:
    """End every sandbox of this instance and take away what the node made in the kernel. No agent may be running."""
    _run(end_all(config or NodeConfig()), config)


def _run(work: Coroutine[Any, Any, None], config: NodeConfig | None) -> None:
    # Whatever is written here or by runsc, which inherits this, is nobody else's; what others may use says so itself.
    os.umask(0o077)
    try:
        run(work, log_level=(config or NodeConfig()).log_level)
    except* Exception as errors:  # noqa: BLE001 - the last words of the program
        _log.critical("node agent cannot go on", exc_info=True, errors=_words(errors))
        sys.exit(1)


def _words(error: BaseException) -> list[str]:
    """Say what failed, without the groups around it."""
    if not isinstance(error, BaseExceptionGroup):
        return [f"{type(error).__name__}: {error}"]
    group = cast("BaseExceptionGroup[BaseException]", error)
    return [word for each in group.exceptions for word in _words(each)]


async def _serve_until_told(config: NodeConfig) -> None:
    told = told_to_end()
    async with serving(config, real_parts(config)):
        _spare_the_collector()
        _log.info("listening", socket=str(config.node_socket_path))
        await told.wait()
        _log.info("exiting; sandboxes run on")


@asynccontextmanager
async def serving(config: NodeConfig, parts: Parts) -> AsyncGenerator[Node]:
    """Have a node open, listening and reporting while inside."""
    link = SocketLink(config.api_socket_path)
    async with opened(config, parts) as node:
        heartbeat = Heartbeat(
            node.manager, node.reporter, link, parts.clock, node.trust, every_seconds=config.heartbeat_seconds
        )
        metrics = operator.listening(node.meters, config.node_metrics_host, config.node_metrics_port)
        async with metrics, asyncio.TaskGroup() as group, _listening(node):
            scrub = node.scrub
            background = (
                *(() if scrub is None else _looking_after(group, scrub, node)),
                group.create_task(node.upkeep.run(node.manager, parts.clock, config.heartbeat_seconds)),
                group.create_task(heartbeat.run()),
                group.create_task(node.manager.tools.sampler.run(node.manager.sampled)),
            )
            try:
                yield node
            finally:
                for task in background:
                    task.cancel()
                await link.close()


def _looking_after(group: asyncio.TaskGroup, scrub: Scrub, node: Node) -> tuple[asyncio.Task[None], ...]:
    clock = node.parts.clock
    return (
        group.create_task(scrub.run(node.manager, clock)),
        group.create_task(scrub.pay(clock, node.config.heartbeat_seconds)),
    )


@asynccontextmanager
async def _listening(node: Node) -> AsyncGenerator[None]:
    config = node.config
    leaving = Ending()
    calls = data_plane.routes(node.manager, leaving=leaving)
    routes = [
        *node_calls.routes(node.manager, node.reporter),
        *history.routes(node.manager),
        *tunnels.routes(node.manager, node.tunnels, node.parts.network),
        *decisions.routes(node.manager.tools.decisions),
        *gateway.trust_routes(node.trust),
        *images.routes(node.images.jobs, node.images.uploads, node.parts.images),
    ]
    own = operator.routes(node.parts.ledger, node.meters)
    serves = runner(application(allowed_peers(config.api_user), [*routes, *calls, *own]))
    await serves.setup()
    try:
        await web.SockSite(serves, listen(config.node_socket_path, config.api_user)).start()
        async with _gateway_listening(node, calls, leaving):
            yield
    finally:
        leaving.set()
        await serves.cleanup()


@asynccontextmanager
async def _gateway_listening(node: Node, calls: list[web.AbstractRouteDef], leaving: Ending) -> AsyncGenerator[None]:
    """Serve the gateway: calls of the data plane on one socket, streams into sandboxes on the other."""
    config = node.config
    peers = gateway.allowed_gateway(config.gateway_user)
    streams = Streams(node.manager, node.ways, node.trust, peers, os.urandom, leaving)
    serves = runner(gateway.application(peers, node.trust, calls))
    await serves.setup()
    try:
        directory = config.gateway_dir
        await web.SockSite(serves, listen(directory / "calls.sock", config.gateway_user)).start()
        async with streams.serving(listen(directory / "streams.sock", config.gateway_user)):
            yield
            leaving.set()
    finally:
        leaving.set()
        await serves.cleanup()


def _spare_the_collector() -> None:
    """Have the garbage collector look at what calls leave behind, seldom, and never again at the program itself.

    Left alone, it goes through every function and type of this program each few hundred calls, while all of them wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 10, 10)


async def end_all(config: NodeConfig) -> None:
    """End every sandbox with reason `operator_stopped`, then remove the network and what the runtime keeps."""
    parts = real_parts(config)
    async with opened(config.model_copy(update={"pool_max": 0}), parts) as node:
        manager = node.manager
        stop = StopRequest(
            generation=None,
            epoch=manager.epoch,
            grace_seconds=2,
            wait_seconds=_DOWN_SECONDS,
            reason=SandboxReason.OPERATOR_STOPPED,
        )
        living = [each for each, one in manager.runners.items() if one.life.state not in TERMINAL]
        async with asyncio.TaskGroup() as group:
            for sandbox_id in living:
                group.create_task(manager.stop(sandbox_id, stop))
        _log.info("all sandboxes ended", ended=len(living))
    await parts.network.stop(keep=False)
    await parts.runtime.clear()
