# Derived from _async by unasync.py: change it there.
"""A sandbox: made, used, ended."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from typing import Any, Final, cast

from sandlot._access import NodeAccess
from sandlot._clock import shield, sleep
from sandlot._commands import Default, Relay, asked, command_body, encode_input, iso, policy_of, segment
from sandlot._requests import Request
from sandlot._sync.client import Client
from sandlot._sync.connection import Connection
from sandlot._sync.egress import Egress
from sandlot._sync.files import Files
from sandlot._sync.process import Process, Run
from sandlot._sync.route import Route
from sandlot._sync.tunnels import Tunnels
from sandlot.descriptions import LogLine, Port, Sample
from sandlot.errors import (
    NotFoundError,
    PortNotListeningError,
    ProcessEndedError,
    SandboxEndedError,
    SandboxNotFoundError,
    StdinClosedError,
    UnreachableError,
    sandbox_ended,
)
from sandlot.ids import is_sandbox_id, new_idempotency_key
from sandlot.images import Image, ImageInfo
from sandlot.models import SETTLED_STATES, ProcessInfo, Resources, RunResult, SandboxInfo, as_object, as_objects, text
from sandlot.retries import Patience

_CREATE_WAIT_SECONDS: Final = 60
_STOP_WAIT_SECONDS: Final = 30
_LONGEST_WAIT_SECONDS: Final = 60
_NODE_SCOPES = ("processes", "files", "tunnels")
_RUN_TIMEOUT_SECONDS: Final = 300
"""What a run has unless told; a process of its own has none."""
_LARGEST_INPUT: Final = 4 * 1024 * 1024
_MARGIN_SECONDS: Final = 30.0
"""How much longer than the wait asked for an answer may take to come."""


class Sandbox:
    """One isolated environment with its own kernel view, file system and network.

    Leaving its `with` block ends a sandbox that was created by this object, and only lets go of one that was
    looked up with `get`.
    """

    def __init__(
        self,
        client: Client,
        info: SandboxInfo,
        *,
        owns_sandbox: bool,
        owns_client: bool,
        access: NodeAccess | None = None,
    ) -> None:
        self._client = client
        self._owns_sandbox = owns_sandbox
        self._owns_client = owns_client
        self._route = Route(client, info.id, access)
        self._path = self._route.path
        self.info = info
        """The sandbox as last described by the API."""
        self.files = Files(self._route)
        """Its files, with the rights of its user."""
        self.egress = Egress(client, self._path)
        """What it may reach."""
        self.tunnels = Tunnels(client, self._path)
        """Ways from outside to its ports."""

    @classmethod
    def create(  # noqa: PLR0913 - one keyword for each field of the API
        cls,
        image: str | Image | None = None,
        *,
        snapshot: str | None = None,
        name: str | None = None,
        if_exists: str | None = None,
        entrypoint: Sequence[str] | None = None,
        use_image_entrypoint: bool | None = None,
        env: Mapping[str, str] | None = None,
        secret_env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        resources: Resources | None = None,
        timeout_seconds: int | Default | None = Default.OF_SERVER,
        idle_timeout_seconds: int | None = None,
        idle_ignores_processes: bool | None = None,
        on_timeout: str | None = None,
        on_idle: str | None = None,
        auto_resume: bool | None = None,
        paused_retention_seconds: int | Default | None = Default.OF_SERVER,
        egress: str | Mapping[str, Any] | None = None,
        tunnels: Sequence[Mapping[str, Any]] | None = None,
        wait: bool = True,
        progress: Callable[[ImageInfo], None] | None = None,
        client: Client | None = None,
    ) -> "Sandbox":
        """Make a sandbox and wait until it runs, or only until it is promised if `wait` is False.

        `image` is a name, an id, a reference to a registry's, or an `Image`; one of those is made first, which
        `progress` is told of meanwhile. What is left out is the server's default; `timeout_seconds=None` asks for no
        limit. `secret_env` gives variables the values of secrets, by their names. `egress` is a mode such as
        `"blocked"` or `"open"`, or a whole policy. With a `name` and `if_exists="return"` a live sandbox of that name
        is taken instead, and not ended with the block. A retry never makes a second one. Raises SandboxEndedError if
        it ended before it ran, ApiError if it was refused, and ImageFailedError if its `Image` could not be made.
        """
        given: dict[str, Any] = {
            "snapshot": snapshot,
            "name": name,
            "if_exists": if_exists,
            "entrypoint": list(entrypoint) if entrypoint else None,
            "use_image_entrypoint": use_image_entrypoint,
            "env": dict(env) if env else None,
            "secret_env": dict(secret_env) if secret_env else None,
            "metadata": dict(metadata) if metadata else None,
            "user": user,
            "cwd": cwd,
            "resources": resources.to_json() if resources else None,
            "idle_timeout_seconds": idle_timeout_seconds,
            "idle_ignores_processes": idle_ignores_processes,
            "on_timeout": on_timeout,
            "on_idle": on_idle,
            "auto_resume": auto_resume,
            "egress": None if egress is None else policy_of(egress),
            "tunnels": list(tunnels) if tunnels else None,
        }
        wait_seconds = _CREATE_WAIT_SECONDS if wait else 0
        body = {key: value for key, value in given.items() if value is not None}
        body |= {"wait_seconds": wait_seconds}
        if snapshot is None and not isinstance(image, Image):
            body["image"] = image or "base"
        body |= asked("timeout_seconds", timeout_seconds) | asked("paused_retention_seconds", paused_retention_seconds)
        owned = client is None
        client = client or Client()
        try:
            if isinstance(image, Image):
                body["image"] = (client.images.make(image, progress=progress)).id
            request = Request(
                "POST",
                "/v1/sandboxes",
                body=body,
                idempotency_key=new_idempotency_key(),
                silence_seconds=wait_seconds + _MARGIN_SECONDS,
            )
            answer, is_new = client.create(request)
            info = SandboxInfo.parse(answer)
        except BaseException:
            if owned:
                client.close()
            raise
        access = NodeAccess.parse(answer, client.settings.url)
        sandbox = cls(client, info, owns_sandbox=is_new, owns_client=owned, access=access)
        if wait:
            try:
                sandbox.wait_until_running()
            except BaseException:
                # The caller will never hold it, so nobody else would end it.
                sandbox.close()
                raise
        return sandbox

    @classmethod
    def connect(cls, name: str, *, client: Client | None = None) -> "Sandbox":
        """Look up a live sandbox by its name, or any by its id. Raises SandboxNotFoundError."""
        if is_sandbox_id(name):
            return cls.get(name, client=client)
        with closing(cls.list(name=name, client=client)) as found:
            for info in found:
                return cls.get(info.id, client=client)
        problem = {"code": "sandbox_not_found", "detail": f"no live sandbox is named {name!r}"}
        raise SandboxNotFoundError(
            404, problem | {"hint": f"One that has ended goes by its id: `sandlot ps --all --filter name={name}`."}
        )

    @classmethod
    def get(cls, sandbox_id: str, *, client: Client | None = None) -> "Sandbox":
        """Look up a sandbox by id. Raises SandboxNotFoundError."""
        owned = client is None
        client = client or Client()
        try:
            info = SandboxInfo.parse(client.call(Request("GET", f"/v1/sandboxes/{segment(sandbox_id)}")))
        except BaseException:
            if owned:
                client.close()
            raise
        return cls(client, info, owns_sandbox=False, owns_client=owned)

    @classmethod
    def list(
        cls,
        *,
        state: Sequence[str] = (),
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        client: Client | None = None,
    ) -> Generator[SandboxInfo, None]:
        """Yield descriptions of the project's sandboxes, newest first; those that have not ended unless asked."""
        owned = client is None
        client = client or Client()
        query: dict[str, Any] = {f"metadata.{key}": value for key, value in (metadata or {}).items()}
        if state:
            query["state"] = [*state]
        if name is not None:
            query["name"] = name
        try:
            while True:
                page = as_object(client.call(Request("GET", "/v1/sandboxes", query=query)))
                for item in cast("list[Any]", page.get("items") or []):
                    yield SandboxInfo.parse(item)
                if not page.get("next_cursor"):
                    return
                query["cursor"] = page["next_cursor"]
        finally:
            if owned:
                client.close()

    @property
    def id(self) -> str:
        return self.info.id

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox if this object created it, and let go of the connection. Again: nothing happens."""
        with shield():
            try:
                if self._owns_sandbox:
                    self._owns_sandbox = False
                    self._stop_if_there()
            finally:
                if self._owns_client:
                    self._client.close()

    def _stop_if_there(self) -> None:
        try:
            self.stop()
        except (NotFoundError, SandboxEndedError):
            return

    def stop(self, *, grace_seconds: float | None = None) -> SandboxInfo:
        """End the sandbox: SIGTERM to its processes, after the grace SIGKILL. Again: the same answer."""
        query: dict[str, Any] = {"wait_seconds": _STOP_WAIT_SECONDS}
        if grace_seconds is not None:
            query["grace_seconds"] = grace_seconds
        request = Request("DELETE", self._path, query=query, silence_seconds=_STOP_WAIT_SECONDS + _MARGIN_SECONDS)
        return self._describe(self._client.call(request))

    def refresh(self) -> SandboxInfo:
        """Ask for the present description, and return it."""
        return self._describe(self._client.call(Request("GET", self._path)))

    def wait_until_running(self) -> SandboxInfo:
        """Wait while it is starting. Raises SandboxEndedError with the reason if it ends instead."""
        request = Request(
            "GET",
            self._path,
            query={"wait_seconds": _CREATE_WAIT_SECONDS},
            silence_seconds=_CREATE_WAIT_SECONDS + _MARGIN_SECONDS,
        )
        while self.info.is_starting:
            self._describe(self._client.call(request))
        if self.info.has_ended:
            raise sandbox_ended(self.id, self.info.state, self.info.reason, self.info.message)
        return self.info

    def extend(self, timeout_seconds: int) -> SandboxInfo:
        """Move its end away: to `timeout_seconds` from now, unless it was later anyway."""
        request = Request(
            "POST",
            self._path + "/extend",
            body={"timeout_seconds": timeout_seconds},
            idempotency_key=new_idempotency_key(),
        )
        return self._describe(self._client.call(request))

    def patch(self, *, if_match: int | None = None, **fields: Any) -> SandboxInfo:
        """Change `name`, `metadata`, `timeout_seconds` (from now, also to less), `idle_timeout_seconds` and the like.

        A merge patch: what is not named stays; None removes; a key of `metadata` that is None goes. `if_match` is
        the generation it must still have.
        """
        request = Request(
            "PATCH",
            self._path,
            body=fields,
            more_headers={} if if_match is None else {"If-Match": f'"{if_match}"'},
        )
        return self._describe(self._client.call(request))

    def wait(self, *states: str) -> SandboxInfo:
        """Wait until it is in one of `states`, or settled if none is named, however long that takes."""
        query: dict[str, Any] = {"wait_seconds": _CREATE_WAIT_SECONDS}
        if states:
            query["wait_for"] = ",".join(states)
        request = Request("GET", self._path, query=query, silence_seconds=_CREATE_WAIT_SECONDS + _MARGIN_SECONDS)
        while True:
            info = self._describe(self._client.call(request))
            if info.state in (states or SETTLED_STATES) or info.has_ended:
                return info

    def run(  # noqa: PLR0913 - one keyword for each field of the API
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
        keep: str | None = None,
        with_secrets: bool = True,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        check: bool = False,
    ) -> Run:
        """Run a command to its end and return its output and exit code.

        A string is given to the sandbox's shell, a sequence is run as it is. A command that fails, is not found or
        runs out of time is a result, not an error, unless `check` asks for ProcessFailedError. With `wait_seconds` a
        result that is still `running` may come, whose `wait` goes on. `on_stdout` and `on_stderr` are called with
        text as it comes, which survives broken connections. Without `with_secrets` it does not see the sandbox's
        `secret_env`.
        """
        is_streamed = on_stdout is not None or on_stderr is not None
        body = command_body(command, env=env, cwd=cwd, user=user, with_secrets=with_secrets)
        body |= asked("timeout_seconds", timeout_seconds)
        is_large = input is not None and len(input) > _LARGEST_INPUT
        limits: dict[str, Any] = {"max_output_bytes": max_output_bytes, "keep": keep}
        if is_large:
            process = self._start_with(body, input or b"")
            result = process.result(wait_seconds=0, **limits)
        else:
            given = limits | {"wait_seconds": 0 if is_streamed else wait_seconds}
            body |= encode_input(input) | {name: value for name, value in given.items() if value is not None}
            result = RunResult.parse(self._route.call("POST", "/run", body=body))
            process = Process(self._route, ProcessInfo.of_result(result))
        if is_streamed:
            self._relay(process, on_stdout, on_stderr, wait_seconds)
            result = process.result(**limits)
        elif is_large:
            result = process.wait(timeout_seconds=wait_seconds, **limits)
        if check:
            result.check()
        return Run(**vars(result), process=process)

    def start(  # noqa: PLR0913 - one keyword for each field of the API
        self,
        command: str | Sequence[str],
        *,
        stdin: bool = False,
        tty: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout_seconds: float | None = None,
        merge_stderr: bool = False,
        tag: str | None = None,
        process_id: str | None = None,
        output: Mapping[str, Any] | None = None,
        with_secrets: bool = True,
    ) -> Process:
        """Start a command and return at once; `output`, `write_stdin`, `attach`, `wait` of the process do the rest.

        `tty` gives it a terminal of so many rows and columns, which implies input. `output` is how its output is
        kept: `{"mode": "block"}` makes it wait for its readers. With a `process_id` of your own (see `sandlot.ids`) a
        second call joins the process instead of starting it.
        """
        body = command_body(command, env=env, cwd=cwd, user=user, process_id=process_id, with_secrets=with_secrets)
        if tty is None:
            body["stdin"] = stdin
        given: dict[str, Any] = {
            "tty": None if tty is None else {"rows": tty[0], "cols": tty[1]},
            "timeout_seconds": timeout_seconds,
            "merge_stderr": merge_stderr or None,
            "tag": tag,
            "output": None if output is None else dict(output),
        }
        body |= {name: value for name, value in given.items() if value is not None}
        info = ProcessInfo.parse(self._route.call("POST", "/processes", body=body))
        return Process(self._route, info)

    def process(self, process_id: str) -> Process:
        """Look up a process by id, running or ended. Raises ProcessNotFoundError."""
        info = ProcessInfo.parse(self._route.call("GET", f"/processes/{segment(process_id)}"))
        return Process(self._route, info)

    def processes(self, *, state: str | None = None, tag: str | None = None) -> "list[Process]":
        """Return its processes, running and ended, unless `state` or `tag` say which."""
        given = {"state": state, "tag": tag}
        query = {name: value for name, value in given.items() if value is not None}
        with closing(self._route.pages("/processes", query)) as items:
            return [Process(self._route, ProcessInfo.parse(item)) for item in items]

    def ports(self, port: int | None = None, *, wait_seconds: float = 0) -> "list[Port]":
        """Return the ports on which something listens inside; with `port` that one, after at most so long a wait."""
        query: dict[str, Any] = {} if port is None else {"port": port, "wait_seconds": wait_seconds}
        answer = as_object(
            self._route.call("GET", "/ports", query=query, silence_seconds=wait_seconds + _MARGIN_SECONDS)
        )
        return [Port.parse(item) for item in as_objects(answer.get("items"))]

    def wait_for_port(self, port: int, *, timeout_seconds: float = 60) -> Port:
        """Wait until something listens on `port`. PortNotListeningError when nothing does after the time-out."""
        clock = self._client.retries.clock
        end = clock() + timeout_seconds
        while True:
            left = max(0.0, end - clock())
            found = self.ports(port, wait_seconds=round(min(left, _LONGEST_WAIT_SECONDS), 3))
            if found:
                return found[0]
            if clock() >= end:
                detail = f"nothing listens on port {port} after {timeout_seconds:g} s"
                raise PortNotListeningError(502, {"code": "port_not_listening", "detail": detail, "port": port})

    def use_node(self) -> None:
        """Have calls go to the node directly from now on, where it has a gateway; by the api where not.

        A sandbox that was created here does so already. ApiError if the key may make no token for it.
        """
        request = Request(
            "POST",
            f"{self._path}/tokens",
            body={"scopes": list(_NODE_SCOPES)},
            idempotency_key=new_idempotency_key(),
        )
        answer = as_object(self._client.call(request))
        self._route.access = NodeAccess.parse({"id": self.id, "access": answer}, self._client.settings.url)

    def dial(self, port: int) -> Connection:
        """Connect to a port on the sandbox's loopback: bytes both ways, through no tunnel that others could use."""
        return Connection.open(self._route, port)

    def logs(
        self, *, after: str | None = None, process_id: str | None = None, follow: bool = False
    ) -> Generator[LogLine, None]:
        """Yield what its processes wrote, also after its end, for as long as logs are kept.

        With `follow` it goes on until the sandbox ends; a broken stream is opened again where it broke.
        """
        query: dict[str, Any] = {"follow": True} if follow else {}
        query |= {} if process_id is None else {"process_id": process_id}
        patience = Patience(self._client.retries)
        while True:
            try:
                asked = query | ({"after": after} if after else {})
                with closing(self._route.by_api.lines("/logs", asked)) as lines:
                    for raw in lines:
                        patience.progress()
                        after = text(raw, "cursor") or after
                        if raw.get("kind") not in {"keepalive", "end"}:
                            yield LogLine.parse(raw)
                return  # noqa: TRY300 - the way out of the loop
            except UnreachableError as error:
                # Without a cursor nobody knows where it broke, and starting over would tell things twice.
                delay = patience.next_delay(error, repeatable=after is not None or not patience.has_progressed)
                if delay is None:
                    raise
            sleep(delay)

    def metrics(
        self, *, start: datetime | None = None, end: datetime | None = None, step_seconds: int | None = None
    ) -> "list[Sample]":
        """Return what it used, a sample each `step_seconds`; of the last five minutes unless asked."""
        given = {"start": iso(start), "end": iso(end), "step_seconds": step_seconds}
        query = {name: value for name, value in given.items() if value is not None}
        with closing(self._route.by_api.pages("/metrics", query)) as items:
            return [Sample.parse(item) for item in items]

    def _start_with(self, body: dict[str, Any], data: str | bytes) -> Process:
        """Start a run whose input does not fit into a request, and write that."""
        body = {"timeout_seconds": _RUN_TIMEOUT_SECONDS} | body | {"stdin": True}
        process = Process(self._route, ProcessInfo.parse(self._route.call("POST", "/processes", body=body)))
        with suppress(StdinClosedError, ProcessEndedError):  # it wanted no more of it
            process.write_stdin(data, close=True)
        return process

    def _relay(
        self,
        process: Process,
        on_stdout: Callable[[str], object] | None,
        on_stderr: Callable[[str], object] | None,
        wait_seconds: float | None,
    ) -> None:
        """Pass output on until the end, or for so long."""
        relay = Relay(on_stdout, on_stderr)
        clock = self._client.retries.clock
        end = None if wait_seconds is None else clock() + wait_seconds
        with process.output() as output:
            for frame in output:
                relay.take(frame)
                if end is not None and clock() >= end:
                    break
        relay.finish()

    def _describe(self, answer: object) -> SandboxInfo:
        self.info = SandboxInfo.parse(answer)
        return self.info
