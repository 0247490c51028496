"""Control groups of the host, version 1 and 2 behind one interface: limits, meters, certain death."""

from sandboxd.cgroups.node import Cgroups
from sandboxd.cgroups.tree import Limits, Meters

__all__ = ["Cgroups", "Limits", "Meters"]
