"""What is known in memory of images that are being made: their jobs as their nodes last told, and who follows them."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sandboxd.contract.images import ImageJob


@dataclass(slots=True)
class ImageBoard:
    """By image id."""

    jobs: dict[str, ImageJob] = field(default_factory=dict[str, ImageJob])
    following: dict[str, asyncio.Task[Any]] = field(default_factory=dict[str, asyncio.Task[Any]])
