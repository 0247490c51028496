"""port-forward: ports of a sandbox on this machine, for nobody else."""

from contextlib import suppress
from typing import Annotated

import anyio
import typer
from anyio.abc import SocketAttribute, SocketStream

from sandlot._async.client import AsyncClient
from sandlot._async.connection import AsyncConnection
from sandlot._async.sandbox import AsyncSandbox
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.errors import ApiError, SandlotError

_PIECE_BYTES = 65_536
_LARGEST_PORT = 65_535


def port_forward(
    sandbox: options.Sandbox,
    ports: Annotated[list[str], typer.Argument(metavar="[LOCAL:]REMOTE", help="LOCAL 0: a free one.")],
    *,
    address: Annotated[str, typer.Option("--address", help="Where to listen on this machine.")] = "127.0.0.1",
    as_json: options.Json = False,
) -> None:
    """Make ports of a sandbox reachable on this machine, until interrupted."""
    pairs = [_ports(text) for text in ports]

    async def work(client: AsyncClient) -> None:
        box = await AsyncSandbox.connect(sandbox, client=client)
        with suppress(ApiError):  # a key that makes no tokens, or an api that has none: the connections go by the api
            await box.use_node()
        async with anyio.create_task_group() as tasks:
            for local, remote in pairs:
                listener = await anyio.create_tcp_listener(local_host=address, local_port=local)
                port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, no database's
                told = {"address": address, "local": port, "remote": remote, "sandbox_id": box.id}
                line = f"{address}:{port} -> {remote} in {box.id}"
                show.print_json(told) if as_json else show.print_line(line)
                tasks.start_soon(listener.serve, _Forward(box, remote).serve)

    do(work, as_json=as_json)


class _Forward:
    """One port, for any number of connections."""

    def __init__(self, sandbox: AsyncSandbox, port: int) -> None:
        self._sandbox = sandbox
        self._port = port

    async def serve(self, local: SocketStream) -> None:
        """Join one connection with one of its own inside. What goes wrong with it ends it alone."""
        failure: SandlotError | None = None
        async with local:
            try:
                async with await self._sandbox.dial(self._port) as remote, anyio.create_task_group() as tasks:
                    tasks.start_soon(_send, local, remote)
                    failure = await _receive(local, remote)
                    tasks.cancel_scope.cancel()
            except SandlotError as error:
                failure = error
        if failure is not None:
            show.note(f"port {self._port}: {failure}")


async def _send(local: SocketStream, remote: AsyncConnection) -> None:
    with suppress(SandlotError, anyio.BrokenResourceError):
        try:
            while True:
                await remote.send(await local.receive(_PIECE_BYTES))
        except anyio.EndOfStream:
            await remote.send_eof()


async def _receive(local: SocketStream, remote: AsyncConnection) -> SandlotError | None:
    try:
        while data := await remote.receive():
            await local.send(data)
        await local.send_eof()
    except SandlotError as error:
        return error
    except anyio.BrokenResourceError:
        return None
    return None


def _ports(text: str) -> tuple[int, int]:
    """Return the local and the remote port.

    >>> _ports("8080:80"), _ports("80")
    ((8080, 80), (80, 80))
    """
    local, _, remote = text.rpartition(":")
    numbers = [local or remote, remote]
    if not all(one.isdecimal() and int(one) <= _LARGEST_PORT for one in numbers) or int(remote) == 0:
        raise typer.BadParameter(f"{text!r} is not [LOCAL:]REMOTE", param_hint="PORTS")
    return int(numbers[0]), int(numbers[1])
