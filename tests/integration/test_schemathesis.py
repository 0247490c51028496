# pyright: reportUnknownVariableType=false
"""The document against the server, by Schemathesis: never a 5xx, and every answer is one the document names.

What is sent may be fine or not; data-plane calls reach a fake node that holds a sandbox and a process with known ids.
"""

import asyncio
import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from api.app.public import public_app
from api_stand import api
from sandboxd.contract.ids import new_id

DOCUMENT = public_app().openapi()
SCHEMA: Any = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
    ignored_auth,
]
OF_THE_API: list[Any] = [*CHECKS, negative_data_rejection]
"""Data-plane input is judged by the node, and the fake one is no judge."""
DATA_PLANE = frozenset({"processes", "files", "directories", "archive", "watch", "uploads"})
EXAMPLES = 15


class Target:
    """A served api with something in it."""

    def __init__(self) -> None:
        self.url = ""
        self.key = ""
        self.sandbox_id = ""
        self.process_id = new_id("prc", os.urandom)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Generator[Target]:
    """Serve from a thread of its own: Schemathesis calls from this one and blocks."""
    found, ready, done = Target(), threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve(base: Path) -> None:
        async with api(base, node_interval_seconds=3600) as stand:
            sandbox = await stand.root.create()
            await stand.root.call(
                "POST", f"/v1/sandboxes/{sandbox['id']}/processes", {"argv": ["cat"], "id": found.process_id}
            )
            found.url, found.sandbox_id = stand.url, sandbox["id"]
            found.key = stand.root.headers["Authorization"].removeprefix("Bearer ")
            loops.append(asyncio.get_running_loop())
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve(tmp_path_factory.mktemp("api"))))
    thread.start()
    assert ready.wait(60)
    yield found
    loops[0].call_soon_threadsafe(done.set)
    thread.join(60)


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
def test_the_document_holds(case: Any, target: Target) -> None:
    names: dict[str, Any] = case.path_parameters or {}
    if str(names.get("sandbox_id", "")).startswith("sbx") and case.method != "DELETE":
        names["sandbox_id"] = target.sandbox_id
    if str(names.get("process_id", "")).startswith("prc"):
        names["process_id"] = target.process_id
    query: dict[str, Any] = case.query or {}
    query.pop("follow", None)
    waits = query.get("wait_seconds")
    if isinstance(waits, int | float) and 0 < waits <= 60:
        query["wait_seconds"] = 0
    own = not case.path.endswith("}/run") and not DATA_PLANE.intersection(case.path.split("/"))
    checks = OF_THE_API if own else CHECKS
    case.call_and_validate(base_url=target.url, headers={"Authorization": f"Bearer {target.key}"}, checks=checks)
