"""The HTTP apps: the public one and the internal one."""

from typing import Any, Final, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from api.app.dispatch import Dispatcher
from api.app.edge import Edge
from api.config import VERSION
from api.routes import (
    decisions,
    egress,
    files,
    history,
    images,
    later,
    node_reports,
    ports,
    processes,
    runs,
    sandboxes,
    secrets,
    service,
    sockets,
    tokens,
    tunnels,
    uploads,
)
from api.routes.answers import problem_answer
from api.routes.operations import complete
from api.services.platform import Platform
from sandboxd.contract.problems import ProblemError

_ROUTERS: Final = (
    sandboxes.router,
    processes.router,
    sockets.router,
    egress.router,
    decisions.router,
    files.router,
    ports.router,
    tokens.router,
    tunnels.router,
    history.router,
    runs.router,
    images.router,
    uploads.router,
    secrets.router,
    service.router,
    later.router,
)
_HTTP_CODES = {404: "route_not_found", 405: "method_not_allowed"}
_DESCRIPTION = (
    "Sandboxes for code that nobody has read yet. `docs/` has the guide; errors are `application/problem+json`."
)


class PublicApp(FastAPI):
    """The public app with its document."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            self.openapi_schema = complete(document)
        return self.openapi_schema


def _problem(request: Request, error: Exception) -> Response:
    return problem_answer(request, cast("ProblemError", error))


def _http_problem(request: Request, error: Exception) -> Response:
    status = cast("HTTPException", error).status_code
    code = _HTTP_CODES.get(status, "malformed_request")
    answer = problem_answer(request, ProblemError(code, f"{request.method} {request.url.path[:200]}"))
    for name, value in (cast("HTTPException", error).headers or {}).items():
        answer.headers[name] = value
    return answer


def _handle_problems(app: FastAPI) -> None:
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(HTTPException, _http_problem)


def public_app() -> PublicApp:
    """Build the public app; it serves once it has a platform."""
    app = PublicApp(
        title="Sandlot",
        version=VERSION,
        description=_DESCRIPTION,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    _handle_problems(app)
    _include(app, _ROUTERS)
    return app


def internal_app(*, reports: bool) -> FastAPI:
    """Build the app of the internal socket, or, without `reports`, of the metrics listener."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _handle_problems(app)
    _include(app, (service.internal, node_reports.router) if reports else (service.internal,))
    return app


def _include(app: FastAPI, routers: tuple[APIRouter, ...]) -> None:
    app.state.routers = routers
    for router in routers:
        app.include_router(router)


def on(platform: Platform, app: FastAPI) -> ASGIApp:
    """Give an app its platform and its outermost layer."""
    app.state.platform = platform
    routes = [route for router in app.state.routers for route in router.routes]
    return Edge(Dispatcher(app, routes), platform.metrics, platform.sources.random_bytes)
