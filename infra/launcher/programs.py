"""The programs of one box: how each is started, and how it says that it can serve."""

import sys
from collections.abc import Mapping
from typing import Any

import aiohttp
from pydantic_settings import BaseSettings

from api.config import Settings
from infra.config import LauncherConfig
from infra.launcher import told
from infra.launcher.rotation import Bounds
from infra.launcher.supervisor import Program
from infra.launcher.told import UntoldError
from sandboxd.config import NodeConfig
from tunnels.gateway.config import GatewayConfig

_ANSWER_SECONDS = 2.0


def node(config: LauncherConfig, env: Mapping[str, str]) -> Program:
    """The node agent: root, because it makes namespaces, cgroups and sandboxes."""

    async def ready() -> bool:
        return await _answers("http://node/node/v1/report", aiohttp.UnixConnector(str(config.node_socket)))

    return Program(
        name="node",
        argv=(*_child(), "--", sys.executable, "-m", "sandboxd"),
        env=environment(env, config, home="/root", reads=NodeConfig),
        log=config.logs_dir / "node.log",
        ready=ready,
        log_bounds=_log_bounds(config),
        stop_seconds=60,
    )


def api(config: LauncherConfig, env: Mapping[str, str]) -> Program:
    """The control plane: the unprivileged system user."""

    async def ready() -> bool:
        try:
            url = told.url(config.url_path)
        except UntoldError:
            return False
        return await _answers(f"{url}/readyz", None)

    return Program(
        name="api",
        argv=(*_child(), "--user", config.api_user, "--", sys.executable, "-m", "api"),
        env=environment(env, config, home=str(config.api_data_dir), reads=Settings),
        log=config.logs_dir / "api.log",
        ready=ready,
        log_bounds=_log_bounds(config),
    )


def gateway(config: LauncherConfig, env: Mapping[str, str]) -> Program:
    """The way in from outside: a system user of its own, which owns nothing; it faces everybody."""

    async def ready() -> bool:
        report = await _asked("http://node/node/v1/report", aiohttp.UnixConnector(str(config.node_socket)))
        return report is not None and report.get("gateway") is not None

    return Program(
        name="gateway",
        argv=(*_child(), "--user", config.gateway_user, "--", sys.executable, "-m", "tunnels.gateway"),
        env=environment(env, config, home="/nonexistent", reads=GatewayConfig),
        log=config.logs_dir / "gateway.log",
        ready=ready,
        log_bounds=_log_bounds(config),
    )


async def api_lives(config: LauncherConfig) -> bool:
    """Tell whether the api answers, whether or not it has a node."""
    try:
        url = told.url(config.url_path)
    except UntoldError:
        return False
    return await _answers(f"{url}/healthz", None)


def _log_bounds(config: LauncherConfig) -> Bounds:
    return Bounds(file_bytes=config.log_mib << 20, files=config.log_files)


def _child() -> tuple[str, ...]:
    return (sys.executable, "-m", "infra.launcher.child")


def environment(
    env: Mapping[str, str], config: LauncherConfig, *, home: str, reads: type[BaseSettings]
) -> dict[str, str]:
    """Return what a program sees: the settings it reads and what finding system programs needs.

    Nothing else of the caller's: among the settings of the others, and of the client, there are credentials.
    """
    names = {f"SANDLOT_{field.upper()}" for field in reads.model_fields} | {"TZ", "TERM"}
    kept = {name: value for name, value in env.items() if name in names}
    return kept | {
        "HOME": home,
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "SANDLOT_INSTANCE": config.instance,
        "SANDLOT_DATA_DIR": str(config.data_dir),
        "SANDLOT_RUN_DIR": str(config.run_dir),
        "SANDLOT_CACHE_DIR": str(config.cache_dir),
        # On one box the launcher asks the programs where it put them.
        "SANDLOT_NODE_SOCKET": str(config.node_socket),
        "SANDLOT_API_SOCKET": str(config.api_socket),
    }


async def _asked(url: str, connector: aiohttp.BaseConnector) -> dict[str, Any] | None:
    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return await answer.json() if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


async def _answers(url: str, connector: aiohttp.BaseConnector | None) -> bool:
    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(url, allow_redirects=False, ssl=False) as answer,  # our own port, whatever it shows
        ):
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
