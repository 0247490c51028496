"""A small internet beside the host: a namespace that a platform's sandboxes can be allowed to reach."""

import os
import secrets
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from network_world import World
from sandboxd.network.links import End, Links, Neighbour
from sandboxd.network.netns import pin_here, unpin

_NEAR, _FAR = bytes.fromhex("025e00000001"), bytes.fromhex("025e00000002")


class Outside:
    """Echo servers on two addresses of a private network of their own."""

    def __init__(self, directory: Path) -> None:
        self.pin = directory / "outside"
        self.world = World(directory)
        number = secrets.randbelow(250)
        self.network = f"10.229.{number}.0/24"
        self.host = f"10.229.{number}.1"
        self.one, self.other = f"10.229.{number}.2", f"10.229.{number}.3"
        self._link = f"out{secrets.token_hex(3)}"

    @property
    def setting(self) -> str:
        """The setting of a node that lets policies allow it."""
        return f'["{self.network}"]'

    @contextmanager
    def serving(self, *ports: int) -> Generator[None]:
        with ExitStack() as undo:
            undo.callback(unpin, self.pin)
            World.do(None, lambda: pin_here(self.pin))
            undo.callback(self._unwire)
            self._wire()
            World.do(self.pin, self._wire_inside)
            undo.enter_context(self.world.serving(self.pin, ports))
            yield

    def _wire(self) -> None:
        handle = os.open(self.pin, os.O_RDONLY)
        try:
            with Links() as links:
                links.make_veth(End(name=self._link, mac=_NEAR), End(name="eth0", mac=_FAR), handle, 1500)
                found = links.find(self._link)
                assert found is not None
                links.configure(found.index, address=IPv4Interface(f"{self.host}/24"))
        finally:
            os.close(handle)

    def _wire_inside(self) -> None:
        with Links() as links:
            links.configure(1)
            found = links.find("eth0")
            assert found is not None
            links.configure(found.index, address=IPv4Interface(f"{self.one}/24"))
            links.configure(found.index, address=IPv4Interface(f"{self.other}/32"))
            there = Neighbour(IPv4Address(self.host), _NEAR)
            links.configure(found.index, neighbour=there, gateway=there.address)

    def _unwire(self) -> None:
        with Links() as links:
            found = links.find(self._link)
            if found is not None:
                links.delete(found.index)
