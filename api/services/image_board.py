"""What is known in memory of images that are being made: their jobs as their nodes last told, and who follows them."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sandboxd.contract.images import ImageJob


@dataclass(slots=True)
class Sizes:
    """What the images of a project take, as nodes last counted it."""

    unique: dict[str, int] = field(default_factory=dict[str, int])
    """By content."""
    at: float = 0.0
    asking: bool = False


@dataclass(slots=True)
class ImageBoard:
    """By image id."""

    jobs: dict[str, ImageJob] = field(default_factory=dict[str, ImageJob])
    following: dict[str, asyncio.Task[Any]] = field(default_factory=dict[str, asyncio.Task[Any]])
    sizes: dict[str, Sizes] = field(default_factory=dict[str, Sizes])
    """By project."""
