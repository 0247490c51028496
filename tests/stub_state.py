"""The whole state of a stub, and what it shall do wrong."""

import threading
from collections.abc import Callable
from typing import Any

from stub_files import StubFiles
from stub_process import StubProcess
from stub_wire import NOW, Fault, Request

KEY = "sandlot_stub"


class StubApi:
    """The server and its whole state. `url` and `key` are what a client needs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.violations: list[str] = []
        """Requests that the API would refuse as wrong, in words."""
        self.sandboxes: dict[str, dict[str, Any]] = {}
        self.files: dict[str, StubFiles] = {}
        self.processes: dict[str, StubProcess] = {}
        self.created_by_key: dict[str, str] = {}
        self.starts = 0
        self.stdin_limit = 1 << 30
        """How many bytes of input one request takes."""
        self.frame_bytes = 65_536
        self.cuts: list[int] = []
        """After how many bytes of the body each stream breaks, one after the other; then none does."""
        self.input_cuts: list[int] = []
        """After how many bytes from the client each WebSocket breaks, one after the other; then none does."""
        self.clean_end_after_cut = False
        """Whether a broken output ends as if it were whole, instead of in the middle of the transfer."""
        self.settles_after = 0
        """How many times a new sandbox is seen `starting`."""
        self.on_start: Callable[[StubProcess], None] | None = None
        self.close_sockets_with: list[int] = []
        """Codes with which WebSockets close at once, one after the other; then none does."""
        self.ports: dict[int, int] = {}
        """Ports inside that are open, and where they lead on this machine."""
        self.ports_appear_after = 0
        """How many times nothing listens yet."""
        self.logs: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.access: dict[str, Any] | None = None
        """What a create says of the direct way."""
        self.tokens: list[str] = []
        """What `tokens` will answer, one after the other."""
        self.url = ""
        self.key = KEY

    def seen(self, ending: str) -> list[Request]:
        """Return the requests whose `METHOD path` ends so."""
        with self.lock:
            return [one for one in self.requests if f"{one.method} {one.path}".endswith(ending)]

    def take_fault(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if f"{request.method} {request.path}".endswith(fault.ending):
                    self.faults.remove(fault)
                    return fault
        return None

    def take_cut(self) -> int | None:
        with self.lock:
            return self.cuts.pop(0) if self.cuts else None

    def add_sandbox(self, **fields: Any) -> dict[str, Any]:
        sandbox: dict[str, Any] = {
            "id": f"sbx{len(self.sandboxes) + 2:a>20}".replace("0", "z").replace("1", "y").replace("8", "x"),
            "project_id": "prj" + "a" * 20,
            "state": "running",
            "reason": None,
            "message": None,
            "name": None,
            "metadata": {},
            "image": {"id": "img" + "a" * 20, "reference": "base", "digest": "sha256:00"},
            "created_at": NOW,
        } | fields
        self.sandboxes[sandbox["id"]] = sandbox
        self.files[sandbox["id"]] = StubFiles()
        return sandbox

    def add_process(self, sandbox_id: str, **spec: Any) -> StubProcess:
        process = StubProcess(sandbox_id, {"id": "prc" + "b" * 20, "argv": ["scripted"]} | spec)
        self.processes[process.spec["id"]] = process
        return process

    def process_started(self) -> StubProcess:
        """Return the only process."""
        (process,) = self.processes.values()
        return process

    def only_files(self) -> StubFiles:
        """Return the file system of the only sandbox."""
        (files,) = self.files.values()
        return files
