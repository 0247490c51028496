"""A sandbox: made, used, ended."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, cast

from sandlot._async.client import AsyncClient
from sandlot._async.process import AsyncProcess
from sandlot._clock import async_shield
from sandlot._commands import Default, command_body, encode_input, segment
from sandlot._requests import Request
from sandlot.errors import NotFoundError, SandboxEndedError, sandbox_ended
from sandlot.ids import new_idempotency_key
from sandlot.models import ProcessInfo, Resources, RunResult, SandboxInfo, as_object

_CREATE_WAIT_SECONDS: Final = 60
_STOP_WAIT_SECONDS: Final = 30
_MARGIN_SECONDS: Final = 30.0
"""How much longer than the wait asked for an answer may take to come."""


class AsyncSandbox:
    """One isolated environment with its own kernel view, file system and network.

    Leaving its `async with` block ends a sandbox that was created by this object, and only lets go of one that was
    looked up with `get`.
    """

    def __init__(self, client: AsyncClient, info: SandboxInfo, *, owns_sandbox: bool, owns_client: bool) -> None:
        self._client = client
        self._owns_sandbox = owns_sandbox
        self._owns_client = owns_client
        self._path = f"/v1/sandboxes/{info.id}"
        self.info = info
        """The sandbox as last described by the API."""

    @classmethod
    async def create(  # noqa: PLR0913 - one keyword for each field of the API
        cls,
        image: str = "base",
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        resources: Resources | None = None,
        timeout_seconds: int | Default | None = Default.OF_SERVER,
        idle_timeout_seconds: int | None = None,
        idle_ignores_processes: bool | None = None,
        egress: str | Mapping[str, Any] | None = None,
        wait: bool = True,
        client: AsyncClient | None = None,
    ) -> "AsyncSandbox":
        """Make a sandbox and wait until it runs, or only until it is promised if `wait` is False.

        What is left out is the server's default; `timeout_seconds=None` asks for no limit. `egress` is a mode such as
        `"blocked"` or `"open"`, or a whole policy. A retry never makes a second one. Raises SandboxEndedError if it
        ended before it ran, and ApiError if it was refused.
        """
        given: dict[str, Any] = {
            "name": name,
            "env": dict(env) if env else None,
            "metadata": dict(metadata) if metadata else None,
            "user": user,
            "cwd": cwd,
            "resources": resources.to_json() if resources else None,
            "idle_timeout_seconds": idle_timeout_seconds,
            "idle_ignores_processes": idle_ignores_processes,
            "egress": {"mode": egress} if isinstance(egress, str) else egress,
        }
        wait_seconds = _CREATE_WAIT_SECONDS if wait else 0
        body = {key: value for key, value in given.items() if value is not None}
        body |= {"image": image, "wait_seconds": wait_seconds}
        if timeout_seconds is not Default.OF_SERVER:
            body["timeout_seconds"] = timeout_seconds
        request = Request(
            "POST",
            "/v1/sandboxes",
            body=body,
            idempotency_key=new_idempotency_key(),
            silence_seconds=wait_seconds + _MARGIN_SECONDS,
        )
        owned = client is None
        client = client or AsyncClient()
        try:
            info = SandboxInfo.parse(await client.call(request))
        except BaseException:
            if owned:
                await client.aclose()
            raise
        sandbox = cls(client, info, owns_sandbox=True, owns_client=owned)
        if wait:
            try:
                await sandbox.wait_until_running()
            except BaseException:
                # The caller will never hold it, so nobody else would end it.
                await sandbox.aclose()
                raise
        return sandbox

    @classmethod
    async def get(cls, sandbox_id: str, *, client: AsyncClient | None = None) -> "AsyncSandbox":
        """Look up a sandbox by id. Raises SandboxNotFoundError."""
        owned = client is None
        client = client or AsyncClient()
        try:
            info = SandboxInfo.parse(await client.call(Request("GET", f"/v1/sandboxes/{segment(sandbox_id)}")))
        except BaseException:
            if owned:
                await client.aclose()
            raise
        return cls(client, info, owns_sandbox=False, owns_client=owned)

    @classmethod
    async def list(
        cls,
        *,
        state: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        client: AsyncClient | None = None,
    ) -> AsyncGenerator[SandboxInfo, None]:
        """Yield descriptions of the project's sandboxes, newest first; those that have not ended unless asked."""
        owned = client is None
        client = client or AsyncClient()
        query: dict[str, Any] = {f"metadata.{key}": value for key, value in (metadata or {}).items()}
        if state:
            query["state"] = [*state]
        try:
            while True:
                page = as_object(await client.call(Request("GET", "/v1/sandboxes", query=query)))
                for item in cast("list[Any]", page.get("items") or []):
                    yield SandboxInfo.parse(item)
                if not page.get("next_cursor"):
                    return
                query["cursor"] = page["next_cursor"]
        finally:
            if owned:
                await client.aclose()

    @property
    def id(self) -> str:
        return self.info.id

    async def __aenter__(self) -> "AsyncSandbox":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the sandbox if this object created it, and let go of the connection. Again: nothing happens."""
        with async_shield():
            try:
                if self._owns_sandbox:
                    self._owns_sandbox = False
                    await self._stop_if_there()
            finally:
                if self._owns_client:
                    await self._client.aclose()

    async def _stop_if_there(self) -> None:
        try:
            await self.stop()
        except (NotFoundError, SandboxEndedError):
            return

    async def stop(self, *, grace_seconds: float | None = None) -> SandboxInfo:
        """End the sandbox: SIGTERM to its processes, after the grace SIGKILL. Again: the same answer."""
        query: dict[str, Any] = {"wait_seconds": _STOP_WAIT_SECONDS}
        if grace_seconds is not None:
            query["grace_seconds"] = grace_seconds
        request = Request("DELETE", self._path, query=query, silence_seconds=_STOP_WAIT_SECONDS + _MARGIN_SECONDS)
        return self._describe(await self._client.call(request))

    async def refresh(self) -> SandboxInfo:
        """Ask for the present description, and return it."""
        return self._describe(await self._client.call(Request("GET", self._path)))

    async def wait_until_running(self) -> SandboxInfo:
        """Wait while it is starting. Raises SandboxEndedError with the reason if it ends instead."""
        request = Request(
            "GET",
            self._path,
            query={"wait_seconds": _CREATE_WAIT_SECONDS},
            silence_seconds=_CREATE_WAIT_SECONDS + _MARGIN_SECONDS,
        )
        while self.info.is_starting:
            self._describe(await self._client.call(request))
        if self.info.has_ended:
            raise sandbox_ended(self.id, self.info.state, self.info.reason, self.info.message)
        return self.info

    async def extend(self, timeout_seconds: int) -> SandboxInfo:
        """Move its end away: to `timeout_seconds` from now, unless it was later anyway."""
        request = Request(
            "POST",
            self._path + "/extend",
            body={"timeout_seconds": timeout_seconds},
            idempotency_key=new_idempotency_key(),
        )
        return self._describe(await self._client.call(request))

    async def run(  # noqa: PLR0913 - one keyword for each field of the API
        self,
        command: str | Sequence[str],
        *,
        input: str | bytes | None = None,  # noqa: A002 - the name subprocess.run gave it
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout_seconds: float | Default | None = Default.OF_SERVER,
        wait_seconds: float | None = None,
        max_output_bytes: int | None = None,
        check: bool = False,
    ) -> RunResult:
        """Run a command to its end and return its output and exit code.

        A string is given to the sandbox's shell, a sequence is run as it is. A command that fails, is not found or
        runs out of time is a result, not an error, unless `check` asks for ProcessFailedError. With `wait_seconds` a
        result that is still `running` may come, for `process` to go on with.
        """
        body = command_body(command, env=env, cwd=cwd, user=user)
        body |= encode_input(input)
        if timeout_seconds is not Default.OF_SERVER:
            body["timeout_seconds"] = timeout_seconds
        if wait_seconds is not None:
            body["wait_seconds"] = wait_seconds
        if max_output_bytes is not None:
            body["max_output_bytes"] = max_output_bytes
        result = RunResult.parse(await self._client.call(Request("POST", self._path + "/run", body=body)))
        return result.check() if check else result

    async def start(
        self,
        command: str | Sequence[str],
        *,
        stdin: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout_seconds: float | None = None,
        tag: str | None = None,
        process_id: str | None = None,
    ) -> AsyncProcess:
        """Start a command and return at once; `output`, `write_stdin`, `wait` of the process do the rest.

        With a `process_id` of your own (see `sandlot.ids`) a second call joins the process instead of starting it.
        """
        body = command_body(command, env=env, cwd=cwd, user=user, process_id=process_id)
        body["stdin"] = stdin
        if timeout_seconds is not None:
            body["timeout_seconds"] = timeout_seconds
        if tag is not None:
            body["tag"] = tag
        info = ProcessInfo.parse(await self._client.call(Request("POST", self._path + "/processes", body=body)))
        return AsyncProcess(self._client, self.id, info)

    async def process(self, process_id: str) -> AsyncProcess:
        """Look up a process by id, running or ended. Raises ProcessNotFoundError."""
        path = f"{self._path}/processes/{segment(process_id)}"
        return AsyncProcess(self._client, self.id, ProcessInfo.parse(await self._client.call(Request("GET", path))))

    async def processes(self, *, state: str | None = None, tag: str | None = None) -> "list[AsyncProcess]":
        """Return its processes, running and ended, unless `state` or `tag` say which."""
        query: dict[str, Any] = {}
        if state is not None:
            query["state"] = state
        if tag is not None:
            query["tag"] = tag
        found: list[AsyncProcess] = []
        while True:
            page = as_object(await self._client.call(Request("GET", self._path + "/processes", query=query)))
            items = cast("list[Any]", page.get("items") or [])
            found += [AsyncProcess(self._client, self.id, ProcessInfo.parse(item)) for item in items]
            if not page.get("next_cursor"):
                return found
            query["cursor"] = page["next_cursor"]

    def _describe(self, answer: object) -> SandboxInfo:
        self.info = SandboxInfo.parse(answer)
        return self.info
