"""What the calls of service take and answer. Derived by generate.py: change the API instead."""

from typing import Any, TypedDict


class CallerView(TypedDict, total=False):
    id: str
    name: str
    kind: str


class ErrorPage(TypedDict, total=False):
    code: str
    status: int
    title: str
    retryable: bool
    hint: str


class Gateway(TypedDict, total=False):
    domain: str | None
    url: str | None


class Party(TypedDict, total=False):
    id: str
    name: str


class Me(TypedDict, total=False):
    caller: CallerView
    project: Party
    scopes: list[str]
    restrictions: dict[str, Any]
    features: list[str]
    limits: dict[str, int]
    gateway: Gateway
    version: str
    at: str


class PublicKeys(TypedDict, total=False):
    keys: list[dict[str, str]]


class Readiness(TypedDict, total=False):
    checks: dict[str, bool]


class Status(TypedDict, total=False):
    status: str
