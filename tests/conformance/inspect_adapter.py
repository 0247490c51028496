# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
"""Inspect's sandbox environment over the public client, and its self-check: prints what each check found, as JSON.

Run by `test_inspect_self_check.py` in an environment of its own: Inspect brings many packages.
"""

import json
import sys
import traceback
from typing import Any

import anyio
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
)
from inspect_ai.util._sandbox import self_check

from sandlot import (
    ApiError,
    AsyncClient,
    AsyncSandbox,
    FileConflictError,
    FileMissingError,
    PermissionDeniedError,
)

_MEBI = 1024 * 1024
_LARGEST_RESULT = 8 * _MEBI
_COMMAND_MISSING = 127


class SandlotEnvironment(SandboxEnvironment):
    """One sandbox as Inspect wants it."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        super().__init__()
        self._sandbox = sandbox

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,  # noqa: A002 - Inspect's name
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,  # noqa: ARG002 - a second try would do twice what the first did
        concurrency: bool = True,  # noqa: ARG002 - nothing runs here
    ) -> ExecResult[str]:
        try:
            result = await self._sandbox.run(
                cmd,
                input=input,
                cwd=cwd,
                env=env,
                user=user,
                timeout_seconds=timeout,
                max_output_bytes=_LARGEST_RESULT,
                keep="tail",
            )
        except ApiError as error:
            if error.code == "user_not_found":
                raise SandboxUserUnsupportedError(str(error)) from error
            raise
        if result.reason == "timed_out":
            raise TimeoutError(f"{cmd[0]} took longer than {timeout} s")
        if result.start_error is not None and result.start_error.code != "command_not_found":
            raise PermissionError(13, result.start_error.message, cmd[0])
        code = result.exit_code if result.exit_code is not None else _COMMAND_MISSING
        stderr = result.stderr + (result.start_error.message if result.start_error else "")
        return ExecResult(success=code == 0, returncode=code, stdout=result.stdout, stderr=stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        with _errors_of_python(file):
            await self._sandbox.files.write(file, contents)

    async def read_file(self, file: str, text: bool = True) -> Any:
        with _errors_of_python(file):
            info = await self._sandbox.files.stat(file)
            if info.size_bytes > SandboxEnvironmentLimits.MAX_READ_FILE_SIZE:
                raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
            data = await self._sandbox.files.read(file)
        return data.decode() if text else data

    @classmethod
    async def sample_cleanup(cls, *_: Any, **__: Any) -> None:
        """Nothing: the sandbox ends with its block."""


class _errors_of_python:  # noqa: N801 - used like a function
    """Raises what Python raises for files of its own."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileMissingError):
            raise FileNotFoundError(2, "No such file", self._file) from error
        if isinstance(error, PermissionDeniedError):
            raise PermissionError(13, "Permission denied", self._file) from error
        if isinstance(error, FileConflictError) and error.code == "is_directory":
            raise IsADirectoryError(21, "Is a directory", self._file) from error


async def _check() -> dict[str, str]:
    """Run every check in one sandbox, and return what went wrong with each; nothing for those that hold."""
    found: dict[str, str] = {}
    async with AsyncClient() as client, await AsyncSandbox.create(client=client, timeout_seconds=1800) as sandbox:
        environment = SandlotEnvironment(sandbox)
        for name in self_check.__all__:
            try:
                await getattr(self_check, name)(environment)
            except Exception as error:  # noqa: BLE001 - a check that fails is the finding
                found[name] = str(error) or "".join(traceback.format_exception(error))[-500:]
            else:
                found[name] = ""
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(anyio.run(_check)) + "\n")
