"""What makes two sandboxes alike before they are anybody's. Pure."""

import math
from dataclasses import dataclass
from typing import Final

from sandboxd.contract.messages import ReadySandboxes, Resources

LEAST_PROCESSORS: Final = 2
"""The runtime shows no sandbox fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyKey:
    """What a sandbox is made with and cannot be given later: what it sees of its memory, processors and disk is fixed.

    How much of the processors it may use, and how many processes, is not: that is changed while it lives.
    """

    image_id: str
    memory_mib: int
    processors: int
    disk_mib: int

    @property
    def resources(self) -> Resources:
        """What one is made with until it is claimed."""
        return Resources(cpus=self.processors, memory_mib=self.memory_mib, disk_mib=self.disk_mib)


def ready_key(image_id: str, resources: Resources) -> ReadyKey:
    """Return what a ready sandbox must be like to become this one."""
    return ReadyKey(
        image_id=image_id,
        memory_mib=resources.memory_mib,
        processors=max(LEAST_PROCESSORS, math.ceil(resources.cpus)),
        disk_mib=resources.disk_mib,
    )


def key_of(ready: ReadySandboxes) -> ReadyKey:
    """Return what reported ones are like."""
    return ReadyKey(
        image_id=ready.image_id, memory_mib=ready.memory_mib, processors=ready.processors, disk_mib=ready.disk_mib
    )
