"""What the kernel refused, explained by the policy: rows of decisions like those of the programs."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any, Final

import structlog

from netpolicy.nflog import RefusalLog, Refused
from netpolicy.platform import Platform
from netpolicy.policy import Policy
from netpolicy.router_side import LogPrefix
from netpolicy.verdict import Destination, Reason, verdict

_log = structlog.get_logger(__name__)

_LIMITS: Final = {LogPrefix.CONNECTIONS.value: Reason.CONNECTION_LIMIT, LogPrefix.RATE.value: Reason.RATE_LIMIT}


def explained(refused: Refused, policy: Policy, platform: Platform) -> dict[str, Any]:
    """Return the row of a refused packet. Pure."""
    row: dict[str, Any] = {
        "sandbox": refused.source,
        "count": 1,
        "verdict": "deny",
        "source": "limit",
        "rule": None,
        "name": None,
        "address": refused.address,
        "port": refused.port,
        "protocol": refused.protocol,
    }
    limit = _LIMITS.get(refused.prefix)
    if limit is not None:
        return row | {"reason": limit.value}
    where = Destination(address=IPv4Address(refused.address), protocol=refused.protocol, port=refused.port)
    given = verdict(policy, where, platform)
    if given.allowed:
        # The kernel is stricter than the policy here: a packet of no connection, or a name's address without its name.
        return row | {"source": "policy", "reason": Reason.NOT_ALLOWED.value}
    reason = None if given.reason is None else given.reason.value
    return row | {"source": given.source, "rule": given.rule, "reason": reason}


@asynccontextmanager
async def told(
    open_log: Callable[[], RefusalLog],
    policy_of: Callable[[str], tuple[Policy, Platform]],
    decided: Callable[[str, list[dict[str, Any]]], None],
) -> AsyncGenerator[None]:
    """Have the kernel's refusals told while inside. Where its log cannot be had, they are not, and a line says so."""
    try:
        log = await asyncio.to_thread(open_log)
    except OSError as error:
        _log.error("refusals not told", error=str(error))
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        rows = [explained(each, *policy_of(each.source)) for each in log.read()]
        if rows:
            decided("kernel", rows)

    loop.add_reader(log.fileno(), read)
    try:
        yield
    finally:
        loop.remove_reader(log.fileno())
        log.close()
