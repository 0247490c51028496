r"""Client of the Sandlot API: run code nobody has read yet, in a sandbox.

`Sandbox` and its parts block; `AsyncSandbox` and its parts are the same for asyncio and trio. Both retry what is
safe to retry and resume broken streams by themselves.

>>> from sandlot import Sandbox
>>> with Sandbox.create(egress="blocked") as sandbox:
...     sandbox.run(["echo", "hello"]).stdout
'hello\n'
"""

from sandlot._async.attachment import AsyncAttachment
from sandlot._async.client import AsyncClient
from sandlot._async.connection import AsyncConnection
from sandlot._async.egress import AsyncEgress
from sandlot._async.files import AsyncFiles
from sandlot._async.images import AsyncImages
from sandlot._async.process import AsyncOutput, AsyncProcess, AsyncRun
from sandlot._async.sandbox import AsyncSandbox
from sandlot._async.secrets import AsyncSecrets
from sandlot._async.tunnels import AsyncTunnels
from sandlot._commands import Default
from sandlot._sync.attachment import Attachment
from sandlot._sync.client import Client
from sandlot._sync.connection import Connection
from sandlot._sync.egress import Egress
from sandlot._sync.files import Files
from sandlot._sync.images import Images
from sandlot._sync.process import Output, Process, Run
from sandlot._sync.sandbox import Sandbox
from sandlot._sync.secrets import Secrets
from sandlot._sync.tunnels import Tunnels
from sandlot._version import __version__
from sandlot.descriptions import (
    ArchiveSummary,
    Decision,
    EgressExplanation,
    EgressInfo,
    FileEvent,
    FileInfo,
    Link,
    LogLine,
    Port,
    Sample,
    SecretInfo,
    Tunnel,
)
from sandlot.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    ConnectionClosedError,
    DiskFullError,
    FileChangedError,
    FileConflictError,
    FileMissingError,
    InvalidRequestError,
    NameTakenError,
    NoCapacityError,
    NotAvailableError,
    NotFoundError,
    NotPermittedError,
    PermissionDeniedError,
    PortNotListeningError,
    ProcessEndedError,
    ProcessFailedError,
    ProcessNotFoundError,
    ProtocolError,
    QuotaExceededError,
    RateLimitedError,
    SandboxEndedError,
    SandboxLostError,
    SandboxNotFoundError,
    SandboxNotReadyError,
    SandboxPausedError,
    SandlotError,
    ScopeRequiredError,
    ServerError,
    StdinClosedError,
    UnreachableError,
    UnsafeArchiveError,
)
from sandlot.images import Image, ImageFailedError, ImageInfo, ImageTag
from sandlot.models import Frame, ProcessExit, ProcessInfo, Resources, RunResult, SandboxInfo, StartError
from sandlot.retries import RetryPolicy

__all__ = [
    "ApiError",
    "ArchiveSummary",
    "AsyncAttachment",
    "AsyncClient",
    "AsyncConnection",
    "AsyncEgress",
    "AsyncFiles",
    "AsyncImages",
    "AsyncOutput",
    "AsyncProcess",
    "AsyncRun",
    "AsyncSandbox",
    "AsyncSecrets",
    "AsyncTunnels",
    "Attachment",
    "AuthenticationError",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Connection",
    "ConnectionClosedError",
    "Decision",
    "Default",
    "DiskFullError",
    "Egress",
    "EgressExplanation",
    "EgressInfo",
    "FileChangedError",
    "FileConflictError",
    "FileEvent",
    "FileInfo",
    "FileMissingError",
    "Files",
    "Frame",
    "Image",
    "ImageFailedError",
    "ImageInfo",
    "ImageTag",
    "Images",
    "InvalidRequestError",
    "Link",
    "LogLine",
    "NameTakenError",
    "NoCapacityError",
    "NotAvailableError",
    "NotFoundError",
    "NotPermittedError",
    "Output",
    "PermissionDeniedError",
    "Port",
    "PortNotListeningError",
    "Process",
    "ProcessEndedError",
    "ProcessExit",
    "ProcessFailedError",
    "ProcessInfo",
    "ProcessNotFoundError",
    "ProtocolError",
    "QuotaExceededError",
    "RateLimitedError",
    "Resources",
    "RetryPolicy",
    "Run",
    "RunResult",
    "Sample",
    "Sandbox",
    "SandboxEndedError",
    "SandboxInfo",
    "SandboxLostError",
    "SandboxNotFoundError",
    "SandboxNotReadyError",
    "SandboxPausedError",
    "SandlotError",
    "ScopeRequiredError",
    "SecretInfo",
    "Secrets",
    "ServerError",
    "StartError",
    "StdinClosedError",
    "Tunnel",
    "Tunnels",
    "UnreachableError",
    "UnsafeArchiveError",
    "__version__",
]
