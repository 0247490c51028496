"""What listens in a sandbox, as its guest says and as far as that can be true."""

from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from sandboxd.contract.history import Port, PortList, PortNumber
from sandboxd.contract.tunnels import GUEST_PORT
from sandboxd.guest_client.base import GuestError
from sandboxd.processes.live import LiveSandbox, guarded

MOST_PORTS: Final = 4096


def _canonical(text: str) -> str:
    found = ip_address(text)
    if "%" in text:
        msg = "has a zone"
        raise ValueError(msg)
    return str(found)


class _GuestPort(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    port: PortNumber
    protocol: Literal["tcp", "udp"]
    address: Annotated[str, StringConstraints(max_length=45), AfterValidator(_canonical)]
    pid: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


class _GuestPorts(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    items: Annotated[list[_GuestPort], Field(max_length=MOST_PORTS)]


async def listening(sandbox: LiveSandbox, port: int | None, wait_seconds: float) -> PortList:
    """List what listens, by port; waits until the port does, or any, at most that long. The guest's own never shows."""
    async with guarded(sandbox):
        return check_ports(await sandbox.guest.ports(port, wait_seconds), port)


def check_ports(answer: dict[str, Any], port: int | None) -> PortList:
    """Return what a guest says listens. GuestError for what cannot be."""
    try:
        found = _GuestPorts.model_validate(answer).items
    except ValidationError as error:
        raise GuestError("not a list of ports") from error
    shown = [
        Port.model_construct(**each.model_dump())
        for each in found
        if port in (None, each.port) and not (each.protocol == "tcp" and each.port == GUEST_PORT)
    ]
    return PortList(items=sorted(shown, key=lambda each: (each.port, each.protocol, each.address)))
