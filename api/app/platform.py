"""Opens and closes a platform."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from api.config import Settings
from api.reconcilers.loop import reconcile
from api.services import identity, image_following, reports, sealing, trust
from api.services.background import Background
from api.services.identity import Callers
from api.services.node_client import NodeClient
from api.services.platform import Platform, Sources
from api.services.token_keys import TokenKeys
from api.services.vault import open_vault
from api.store.db import Database
from api.store.migrate import migrate

SOURCES = Sources(
    now_us=lambda: time.time_ns() // 1000,
    monotonic=time.monotonic,
    random_bytes=os.urandom,
    draw=secrets.randbelow,
)


@asynccontextmanager
async def open_platform(settings: Settings, sources: Sources = SOURCES) -> AsyncGenerator[Platform]:
    """Migrate the database, make the root project if there is none, remember the nodes, start reconciling."""
    database = Database(settings.store_url)
    await asyncio.to_thread(migrate, database.engine)
    database.open()
    nodes = NodeClient()
    try:
        private = settings.private_dir
        secret = await asyncio.to_thread(identity.installation_secret, private, sources.random_bytes)
        await identity.ensure_root(
            database,
            private,
            default_egress=settings.default_egress,
            now_us=sources.now_us(),
            random_bytes=sources.random_bytes,
        )
        token_keys = TokenKeys(private / "token-keys", sources.random_bytes, days=settings.token_key_days)
        await asyncio.to_thread(token_keys.tend, sources.now_us())
        vault = await asyncio.to_thread(open_vault, private / "secret-keys", sources.random_bytes)
        await database.write(sealing.seal_again, vault)
        async with Background() as background:
            platform = Platform(
                settings=settings,
                database=database,
                nodes=nodes,
                background=background,
                sources=sources,
                secret=secret,
                incarnation=sources.random_bytes(8).hex(),
                callers=Callers(token_keys.verifier),
                token_keys=token_keys,
                vault=vault,
                trust=await trust.current(database, token_keys, sources.now_us()),
            )
            await reports.load_nodes(platform)
            await image_following.take_up(platform)
            background.start(reconcile(platform))
            yield platform
    finally:
        await nodes.close()
        await database.close()
