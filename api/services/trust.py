"""What nodes are told of sandbox tokens: which keys sign them, and whose are good no longer.

A node hears it in the answer to each report that shows it believes something else, and at once when it changes.
"""

import asyncio
import hashlib
from typing import Final

import structlog

from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.token_keys import TokenKeys
from api.store import identity as store
from api.store.db import Database
from sandboxd.contract.trust import MAX_REVOKED, MAX_TOKEN_SECONDS, Trust
from tunnels.tokens import encode

_log = structlog.get_logger()
_KEPT_US: Final = (MAX_TOKEN_SECONDS + 86_400) * 1_000_000


async def current(database: Database, token_keys: TokenKeys, now_us: int) -> Trust:
    """Return what is to be believed now."""
    revoked = sorted(await database.read(store.revoked_since_any_project, now_us - _KEPT_US, MAX_REVOKED))
    keys = [encode(key) for key in token_keys.public()]
    revision = hashlib.sha256("\n".join([*keys, "", *revoked]).encode()).hexdigest()[:32]
    return Trust(revision=revision, keys=keys, revoked=revoked)


async def watch(platform: Platform) -> None:
    """Tend the keys, look for a key that was revoked, in whatever way, and tell every node that can hear it."""
    now_us = platform.sources.now_us()
    await asyncio.to_thread(platform.token_keys.tend, now_us)
    trust = await current(platform.database, platform.token_keys, now_us)
    if trust.revision == platform.trust.revision:
        return
    platform.trust = trust
    members = [member for member in platform.fleet.members.values() if not member.silent]
    async with asyncio.TaskGroup() as group:
        for member in members:
            group.create_task(_tell(platform, member.address, trust))


async def _tell(platform: Platform, address: str, trust: Trust) -> None:
    try:
        await platform.nodes.trust(address, trust)
    except (NodeProblemError, NodeUnreachableError) as error:
        # Its next report says what it believes, and is answered with what it should.
        _log.info("trust not told", node=address, error=str(error))
