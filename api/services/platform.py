"""What every service works with: the database, the nodes, and where time and randomness come from."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from api.config import Settings
from api.services.background import Background
from api.services.changes import Changes
from api.services.fleet import Fleet
from api.services.identity import Callers
from api.services.image_board import ImageBoard
from api.services.metrics import Metrics
from api.services.node_client import NodeClient
from api.services.placement import Draw
from api.services.run_results import RunResults
from api.services.token_keys import TokenKeys
from api.services.vault import Vault
from api.store.db import Database
from sandboxd.contract.ids import RandomBytes
from sandboxd.contract.trust import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Time and randomness, replaceable in tests."""

    now_us: Callable[[], int]
    monotonic: Callable[[], float]
    random_bytes: RandomBytes
    draw: Draw


@dataclass(slots=True, kw_only=True)
class Platform:
    """One running control plane."""

    settings: Settings
    database: Database
    nodes: NodeClient
    background: Background
    sources: Sources
    secret: bytes
    """Seals cursors and keys fingerprints. Of this installation, never in the database."""
    incarnation: str
    """This start of the api."""
    callers: Callers
    token_keys: TokenKeys
    vault: Vault
    """Seals secrets."""
    trust: Trust
    """What nodes are to believe of tokens."""
    fleet: Fleet = field(default_factory=Fleet)
    changes: Changes = field(default_factory=Changes)
    images: ImageBoard = field(default_factory=ImageBoard)
    metrics: Metrics = field(default_factory=Metrics)
    run_results: RunResults = field(default_factory=RunResults)
    starting: dict[str, asyncio.Task[Any]] = field(default_factory=dict[str, asyncio.Task[Any]])
    """Sandboxes a node is being asked to start."""
    overtaken: set[str] = field(default_factory=set[str])
    """Sandboxes somebody has asked to stop while they were being started."""
    telling: set[str] = field(default_factory=set[str])
    """Sandboxes whose nodes are being told what to put into requests."""
    stopping: set[str] = field(default_factory=set[str])
    """Sandboxes a node is being asked to stop."""
