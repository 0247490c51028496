"""Client of the Sandlot API: run code nobody has read yet, in a sandbox.

`Sandbox` and `Process` block; `AsyncSandbox` and `AsyncProcess` are the same for asyncio and trio.
Both retry what is safe to retry and resume broken output streams by themselves.
"""

from sandlot._async.client import AsyncClient
from sandlot._async.process import AsyncOutput, AsyncProcess
from sandlot._async.sandbox import AsyncSandbox
from sandlot._sync.client import Client
from sandlot._sync.process import Output, Process
from sandlot._sync.sandbox import Sandbox
from sandlot._version import __version__
from sandlot.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    InvalidRequestError,
    NoCapacityError,
    NotAvailableError,
    NotFoundError,
    NotPermittedError,
    ProcessEndedError,
    ProcessFailedError,
    ProcessNotFoundError,
    ProtocolError,
    RateLimitedError,
    SandboxEndedError,
    SandboxLostError,
    SandboxNotFoundError,
    SandboxNotReadyError,
    SandlotError,
    ServerError,
    StdinClosedError,
    UnreachableError,
)
from sandlot.models import Frame, ProcessExit, ProcessInfo, Resources, RunResult, SandboxInfo, StartError
from sandlot.retries import RetryPolicy

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncOutput",
    "AsyncProcess",
    "AsyncSandbox",
    "AuthenticationError",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Frame",
    "InvalidRequestError",
    "NoCapacityError",
    "NotAvailableError",
    "NotFoundError",
    "NotPermittedError",
    "Output",
    "Process",
    "ProcessEndedError",
    "ProcessExit",
    "ProcessFailedError",
    "ProcessInfo",
    "ProcessNotFoundError",
    "ProtocolError",
    "RateLimitedError",
    "Resources",
    "RetryPolicy",
    "RunResult",
    "Sandbox",
    "SandboxEndedError",
    "SandboxInfo",
    "SandboxLostError",
    "SandboxNotFoundError",
    "SandboxNotReadyError",
    "SandlotError",
    "ServerError",
    "StartError",
    "StdinClosedError",
    "UnreachableError",
    "__version__",
]
