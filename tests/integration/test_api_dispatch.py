"""Operations are called straight from FastAPI's table: nothing is left out, and nothing answers differently."""

from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.routing import APIRoute

from api.app.dispatch import Dispatcher
from api.app.public import public_app
from api.routes import processes, runs, sandboxes
from api_stand import api


def test_every_call_of_sandboxes_and_processes_is_called_straight() -> None:
    app = public_app()
    routes = [
        route
        for module in (sandboxes, processes, runs)
        for route in module.router.routes
        if isinstance(route, APIRoute)
    ]
    operations = cast("dict[tuple[str, int], list[Any]]", Dispatcher(app, routes)._operations)
    straight = {(method, found.endpoint) for (method, _), some in operations.items() for found in some}
    assert straight == {(method, route.endpoint) for route in routes for method in route.methods or ()}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("HEAD", "/v1/sandboxes/{id}/processes", 405, None),
        ("PUT", "/v1/sandboxes/{id}/run", 405, "method_not_allowed"),
        ("POST", "/v1/sandboxes//run", 404, "route_not_found"),
        ("POST", "/v1/sandboxes/{id}/run/", 404, "route_not_found"),
        ("POST", "/v1/sandboxes/{id}x/run", 404, "sandbox_not_found"),
        ("GET", "/v1/sandboxes/{id}/processes/prc", 404, "process_not_found"),
        ("GET", "/v1/sandboxes/{id}/egress/decisions/b", 404, "route_not_found"),
    ],
)
async def test_what_fits_no_operation_is_answered_as_ever(
    tmp_path: Path, method: str, path: str, status: int, code: str | None
) -> None:
    async with api(tmp_path) as stand:
        sandbox = await stand.root.create()
        answer = await stand.root.call(method, path.format(id=sandbox["id"]))
        assert answer.status == status
        assert (answer.body["code"] if answer.body else None) == code
        assert answer.headers["Sandlot-Request-Id"].startswith("req")


async def test_a_running_sandbox_is_found_without_the_database_by_its_own_project_alone(tmp_path: Path) -> None:
    async with api(tmp_path) as stand:
        sandbox = await stand.root.create()
        path = f"/v1/sandboxes/{sandbox['id']}/run"
        stranger = stand.with_key(await stand.new_key())
        (await stand.root.call("POST", path, {"argv": ["true"]})).expect(200)
        assert (await stranger.call("POST", path, {"argv": ["true"]})).expect(404)["code"] == "sandbox_not_found"
        (await stand.root.call("DELETE", f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": "0"})).expect(200)
        assert (await stand.root.call("POST", path, {"argv": ["true"]})).expect(410)["code"] == "sandbox_ended"


async def test_operations_are_counted_by_name(tmp_path: Path) -> None:
    async with api(tmp_path) as stand:
        sandbox = await stand.root.create()
        (await stand.root.call("POST", f"/v1/sandboxes/{sandbox['id']}/run", {"argv": ["true"]})).expect(200)
        text = stand.platform.metrics.render().decode()
        assert 'sandlot_api_requests_total{operation="run",status="200"} 1.0' in text
        assert 'sandlot_api_requests_total{operation="create_sandbox",status="201"} 1.0' in text
