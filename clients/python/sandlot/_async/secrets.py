"""The secrets of a project: written, listed, removed; nothing reads a value back."""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from sandlot._commands import segment
from sandlot._requests import Request
from sandlot.descriptions import SecretInfo
from sandlot.models import as_object, as_objects

if TYPE_CHECKING:
    from sandlot._async.client import AsyncClient


class AsyncSecrets:
    """The secrets of the key's project."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def set(self, name: str, value: str, *, env: bool = False, hosts: Sequence[str] = ()) -> SecretInfo:
        """Keep a value under a name, instead of what was there; `env` and `hosts` say where it may go: nowhere else.

        `env`: sandboxes may have it as a variable, by `secret_env`. `hosts`: names, or `*.name` for those below one.
        """
        body: dict[str, Any] = {"value": value, "env": env, "hosts": list(hosts)}
        return SecretInfo.parse(await self._client.call(Request("PUT", f"/v1/secrets/{segment(name)}", body=body)))

    async def get(self, name: str) -> SecretInfo:
        """Return what is known of a secret: all but its value. NotFoundError."""
        return SecretInfo.parse(await self._client.call(Request("GET", f"/v1/secrets/{segment(name)}")))

    async def list(self) -> AsyncGenerator[SecretInfo, None]:
        """Yield the project's secrets by name, without their values."""
        query: dict[str, Any] = {}
        while True:
            page = as_object(await self._client.call(Request("GET", "/v1/secrets", query=query)))
            for item in as_objects(page.get("items")):
                yield SecretInfo.parse(item)
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    async def delete(self, name: str) -> None:
        """Remove a secret. NotFoundError; ConflictError while a live sandbox uses it."""
        await self._client.call(Request("DELETE", f"/v1/secrets/{segment(name)}", absence_is_success=True))
