"""What the calls of secrets take and answer. Derived by generate.py: change the API instead."""

from typing import TypedDict


class PutSecret(TypedDict, total=False):
    value: str | None
    value_base64: str | None
    env: bool
    hosts: list[str]


class SecretView(TypedDict, total=False):
    name: str
    version: int
    env: bool
    hosts: list[str]
    created_at: str
    updated_at: str


class SecretList(TypedDict, total=False):
    items: list[SecretView]
    next_cursor: str | None
