"""Calls operations straight: the routes FastAPI registers and documents, without its stack around each request.

What is looked up here is FastAPI's own table. A request that fits none of it exactly, and every route that is more than
a call and path parameters, goes to FastAPI, which also words what is no route at all.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from api.routes.answers import problem_answer
from sandboxd.contract.problems import ProblemError


@dataclass(frozen=True, slots=True)
class _Operation:
    """A route that is an authenticated call with path parameters."""

    segments: tuple[str | None, ...]
    """What the path is split into; None stands for a parameter."""
    parameters: tuple[tuple[str, int], ...]
    """Names of the parameters and where they stand."""
    argument: str
    """The name of what the endpoint is given: a call, or the bare request."""
    authenticate: Callable[[Request], Awaitable[Any]] | None
    endpoint: Callable[..., Awaitable[Response]]

    def fits(self, segments: list[str]) -> bool:
        """Tell whether a path of as many segments is this one's."""
        for mine, given in zip(self.segments, segments, strict=True):
            if (mine is None and not given) or (mine is not None and mine != given):
                return False
        return True


class Dispatcher:
    """Serves `routes` of `app`, and leaves the rest to it."""

    def __init__(self, app: FastAPI, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._operations: dict[tuple[str, int], list[_Operation]] = {}
        for route in routes:
            operation = _operation(route)
            if isinstance(route, APIRoute) and operation is not None:
                for method in route.methods or ():
                    self._operations.setdefault((method, len(operation.segments)), []).append(operation)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        segments: list[str] = scope["path"].split("/") if scope["type"] == "http" else []
        for operation in self._operations.get((scope.get("method", ""), len(segments)), ()):
            if operation.fits(segments):
                await self._call(operation, segments, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _call(
        self, operation: _Operation, segments: list[str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        scope["app"] = self._app
        scope["endpoint"] = operation.endpoint
        request = Request(scope, receive, send)
        arguments: dict[str, Any] = {name: segments[place] for name, place in operation.parameters}
        try:
            given = operation.authenticate
            arguments[operation.argument] = request if given is None else await given(request)
            answer = await operation.endpoint(**arguments)
        except ProblemError as error:
            answer = problem_answer(request, error)
        await answer(scope, receive, send)


def _operation(route: BaseRoute) -> _Operation | None:
    """Return what calls a route; None for one that needs more of FastAPI than a call."""
    if not isinstance(route, APIRoute) or ":" in route.path:
        return None
    needs = route.dependant
    others = (needs.query_params, needs.header_params, needs.cookie_params, needs.body_params)
    found = _argument(needs)
    if any(others) or found is None or not iscoroutinefunction(route.endpoint):
        return None
    segments = tuple(None if part.startswith("{") else part for part in route.path.split("/"))
    names = {f"{{{field.name}}}": field.name for field in needs.path_params}
    places = tuple((names[part], place) for place, part in enumerate(route.path.split("/")) if part in names)
    return _Operation(segments, places, *found, route.endpoint)


def _argument(needs: Dependant) -> tuple[str, Callable[[Request], Awaitable[Any]] | None] | None:
    """Return the one thing a route needs besides parameters, and what makes it; None if it is not just one."""
    if needs.request_param_name is not None:
        return None if needs.dependencies else (needs.request_param_name, None)
    if len(needs.dependencies) != 1:
        return None
    [call] = needs.dependencies
    return None if call.name is None or call.call is None else (call.name, call.call)
