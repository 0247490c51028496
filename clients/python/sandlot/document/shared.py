"""What the calls of more than one area take and answer. Derived by generate.py: change the API instead."""

from typing import TypedDict


class EgressLimits(TypedDict, total=False):
    connections: int
    new_connections_per_second: int
    up_bytes_per_second: int | None
    down_bytes_per_second: int | None


class Resources(TypedDict, total=False):
    cpus: float
    memory_mib: int
    disk_mib: int
    max_processes: int


class InjectRule(TypedDict, total=False):
    host: str
    header: str
    value_from: dict[str, str]
    format: str


class Limits(TypedDict, total=False):
    connections: int
    new_connections_per_second: int
    up_bytes_per_second: int | None
    down_bytes_per_second: int | None


class EgressPolicy(TypedDict, total=False):
    mode: str
    allow: list[str]
    deny: list[str]
    inject: list[InjectRule]
    limits: Limits


class TunnelSpec(TypedDict, total=False):
    port: int | None
    kind: str
    visibility: str
    allow_cidrs: list[str]
    server_name: str | None


class Tunnel(TypedDict, total=False):
    id: str
    sandbox_id: str
    port: int | None
    kind: str
    visibility: str
    allow_cidrs: list[str]
    server_name: str | None
    state: str
    reason: str | None
    message: str | None
    host: str | None
    public_port: int | None
    url: str | None
    path_url: str | None
    in_bytes: int | None
    out_bytes: int | None
    created_at: str


class FieldError(TypedDict, total=False):
    path: str
    code: str
    message: str


class GpuRequest(TypedDict, total=False):
    model: str
    count: int


class Problem(TypedDict, total=False):
    type: str
    title: str
    status: int
    detail: str
    code: str
    reason: str | None
    hint: str | None
    retryable: bool
    request_id: str
    retry_after_seconds: float | None
    trace_id: str | None
    errors: list[FieldError] | None


class StartError(TypedDict, total=False):
    code: str
    message: str


class RunSpec(TypedDict, total=False):
    id: str | None
    argv: list[str] | None
    shell: str | None
    env: dict[str, str]
    with_secrets: bool
    cwd: str | None
    user: str | None
    merge_stderr: bool
    kill_grace_seconds: float
    tag: str | None
    input: str | None
    input_base64: str | None
    timeout_seconds: float | None
    wait_seconds: float | None
    max_output_bytes: int
    keep: str
    output_encoding: str
