"""What the stub answers with JSON."""

import signal
from typing import Any

from stub_files import file_route
from stub_process import StubProcess
from stub_state import StubApi
from stub_tunnels import token_of, tunnel_route
from stub_wire import NOW, Answer, Request, problem


def route(api: StubApi, request: Request) -> Answer:
    """Do what a request asks for."""
    match [request.method, *request.path.strip("/").split("/")[1:]]:
        case ["GET", "me"]:
            return 200, {"version": "stub", "at": NOW, "scopes": ["sandboxes"], "project": {"name": "stub"}}
        case ["POST", "sandboxes"]:
            return _create(api, request)
        case ["GET", "sandboxes"]:
            return _list(api, request)
        case [_, "sandboxes", sandbox_id, *rest]:
            sandbox = api.sandboxes.get(sandbox_id)
            if sandbox is None:
                return 404, problem(404, "sandbox_not_found")
            return _sandbox_route(api, request, sandbox, rest)
        case _:
            return 404, problem(404, "route_not_found")


def _create(api: StubApi, request: Request) -> Answer:
    key = request.headers.get("idempotency-key", "")
    if key in api.created_by_key:
        return 201, api.sandboxes[api.created_by_key[key]]
    spec = request.json
    named = [one for one in api.sandboxes.values() if one["name"] == spec.get("name") and one["state"] != "stopped"]
    if spec.get("name") and named:
        if spec.get("if_exists") == "return":
            return 200, named[0]
        return 409, problem(409, "name_taken", sandbox_id=named[0]["id"])
    state = "starting" if api.settles_after else "running"
    sandbox = api.add_sandbox(state=state, name=spec.get("name"), metadata=spec.get("metadata", {}))
    if key:
        api.created_by_key[key] = sandbox["id"]
    access = api.access or {"url": None, "token": "secret-token", "expires_at": "2999-01-01T00:00:00Z", "scopes": []}
    return 201, sandbox | {"access": access}


def _list(api: StubApi, request: Request) -> Answer:
    start = int(request.value("cursor", "0"))
    shown = [
        one
        for one in api.sandboxes.values()
        if ("stopped" in request.query.get("state", []) or one["state"] == "running")
        and request.value("name", one["name"] or "") == (one["name"] or "")
    ]
    page = shown[start : start + 2]
    return 200, {"items": page, "next_cursor": str(start + 2) if len(shown) > start + 2 else None}


def _sandbox_route(  # noqa: C901, PLR0911, PLR0912 - a table
    api: StubApi, request: Request, sandbox: dict[str, Any], rest: list[str]
) -> Answer:
    match [request.method, *rest]:
        case ["GET"]:
            if sandbox["state"] == "starting":
                api.settles_after -= 1
                if api.settles_after <= 0:
                    sandbox["state"] = "running"
            return 200, sandbox
        case ["DELETE"]:
            sandbox |= {"state": "stopped", "reason": "requested"}
            return 200, sandbox
        case ["PATCH"]:
            sandbox |= request.json
            return 200, sandbox
        case ["POST", "extend"]:
            return 200, sandbox
        case [_, "egress", *verb]:
            return egress_route(sandbox, request, verb)
        case ["GET", "metrics"]:
            return 200, {"items": [_sample(), _sample()], "next_cursor": None}
        case _ if sandbox["state"] in {"stopped", "failed"}:
            return 410, problem(410, "sandbox_ended", reason=sandbox["reason"], state=sandbox["state"])
        case ["POST", "tokens"]:
            if not api.tokens:
                return 403, problem(403, "scope_required", required_scope="tunnels:write")
            return 201, token_of(request.json, api.tokens.pop(0))
        case [_, "tunnels", *tail]:
            return tunnel_route(request, sandbox, tail)
        case _:
            return _inside_route(api, request, sandbox["id"], rest)


def egress_route(sandbox: dict[str, Any], request: Request, verb: list[str]) -> Answer:
    state = sandbox.setdefault("egress_of_stub", {"policy": {"mode": "open"}, "generation": 1})
    rendered = {
        "policy": {"allow": [], "deny": [], "inject": [], "limits": {}} | state["policy"],
        "generation": state["generation"],
        "applied_generation": state["generation"],
        "applied_at": NOW,
        "state": "applied",
    }
    match [request.method, *verb]:
        case ["GET"]:
            return 200, rendered
        case ["PUT"]:
            match = request.headers.get("if-match")
            if match is not None and match != f'"{state["generation"]}"':
                return 412, problem(412, "generation_mismatch", generation=state["generation"])
            sandbox["egress_of_stub"] = {"policy": request.json, "generation": state["generation"] + 1}
            return 200, egress_route(sandbox, Request("GET", request.path, {}, {}), [])[1] | {"closed_connections": 2}
        case ["POST", "explain"]:
            allowed = request.json.get("policy", state["policy"])["mode"] == "open"
            verdict = {"verdict": "allow", "reason": None} if allowed else {"verdict": "deny", "reason": "not_allowed"}
            return 200, verdict | {"source": "policy", "rule": "mode_open" if allowed else None, "hint": None}
        case _:
            return 404, problem(404, "route_not_found")


def _sample() -> dict[str, Any]:
    return {
        "at": NOW,
        "cpu_used_seconds": 1.5,
        "cpu_used_percent": 12.5,
        "cpus": 1,
        "memory_used_bytes": 50 << 20,
        "memory_limit_bytes": 1 << 30,
        "disk_used_bytes": 3 << 20,
        "disk_limit_bytes": 8 << 30,
        "processes": 3,
        "egress_bytes": 1000,
        "ingress_bytes": 2000,
    }


def _inside_route(  # noqa: PLR0911 - a table
    api: StubApi, request: Request, sandbox_id: str, rest: list[str]
) -> Answer:
    match [request.method, *rest]:
        case ["POST", "run"]:
            process = _start(api, request, sandbox_id)
            patience = request.json.get("wait_seconds")
            with process.changed:
                process.changed.wait_for(lambda: process.exit is not None, patience)
            return 200, process.result()
        case ["POST", "processes"]:
            return 201, _start(api, request, sandbox_id).describe()
        case ["GET", "processes"]:
            return 200, {"items": [one.describe() for one in api.processes.values()], "next_cursor": None}
        case ["GET", "ports"]:
            return _ports(api, request)
        case [_, "processes", process_id, *verb]:
            process = api.processes.get(process_id)
            if process is None:
                return 404, problem(404, "process_not_found")
            return _process_route(api, request, process, verb)
        case [_, "files" | "directories" | "archive", *_]:
            return file_route(api.files[sandbox_id], request, rest)
        case _:
            return 404, problem(404, "route_not_found")


def _ports(api: StubApi, request: Request) -> Answer:
    api.ports_appear_after -= 1
    wanted = request.value("port")
    shown = [] if api.ports_appear_after >= 0 else [one for one in api.ports if wanted in {"", str(one)}]
    return 200, {"items": [{"port": one, "protocol": "tcp", "address": "0.0.0.0", "pid": 7} for one in shown]}  # noqa: S104 - as a program inside would


def _start(api: StubApi, request: Request, sandbox_id: str) -> StubProcess:
    spec = request.json
    if spec["id"] not in api.processes:
        api.starts += 1
        process = StubProcess(sandbox_id, spec)
        process.stdin += spec.get("input", "").encode()
        api.processes[spec["id"]] = process
        process.begin()
        if api.on_start is not None:
            api.on_start(process)
    return api.processes[spec["id"]]


def _process_route(  # noqa: PLR0911 - a table
    api: StubApi, request: Request, process: StubProcess, verb: list[str]
) -> Answer:
    match [request.method, *verb]:
        case ["GET"]:
            return 200, process.describe()
        case ["GET", "result"]:
            if float(request.value("wait_seconds", "0")) > 0:
                with process.changed:
                    process.changed.wait_for(lambda: process.exit is not None)
            return 200, process.result()
        case ["POST", "signal"]:
            if process.exit is not None:
                return 409, problem(409, "process_ended", exit_code=process.exit["exit_code"])
            process.signals.append(request.json["signal"])
            if process.argv != ["stubborn"]:
                name = request.json["signal"]
                process.end(128 + signal.Signals[name], "signaled", signal=name)
            return 204, None
        case ["POST", "stdin"]:
            return _stdin(api, request, process)
        case ["POST", "resize"]:
            process.sizes.append((request.json["rows"], request.json["cols"]))
            return 204, None
        case _:
            return 404, problem(404, "route_not_found")


def _stdin(api: StubApi, request: Request, process: StubProcess) -> Answer:
    if process.exit is not None:
        return 409, problem(409, "process_ended", exit_code=process.exit["exit_code"])
    offset = int(request.value("offset", str(len(process.stdin))))
    if offset > len(process.stdin):
        return 409, problem(409, "stdin_gap", offset=len(process.stdin))
    if process.stdin_closed and offset + len(request.body) > len(process.stdin):
        return 409, problem(409, "stdin_closed")
    close = request.value("close") == "true"
    reached = process.feed(offset, request.body, close=close, limit=api.stdin_limit)
    return 200, {"offset": reached, "closed": process.stdin_closed}
