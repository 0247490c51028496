"""The stub's tunnels."""

from typing import Any

from stub_wire import NOW, Answer, Request, problem

HOST = "stub.test"


def tunnel_route(request: Request, sandbox: dict[str, Any], rest: list[str]) -> Answer:
    """Do what a request on a sandbox's tunnels asks for."""
    tunnels: list[dict[str, Any]] = sandbox.setdefault("tunnels", [])
    match [request.method, *rest]:
        case ["GET"]:
            return 200, {"items": tunnels}
        case ["POST"]:
            return _open(request.json, sandbox, tunnels)
        case [method, tunnel_id]:
            found = next((one for one in tunnels if one["id"] == tunnel_id), None)
            if found is None:
                return 404, problem(404, "tunnel_not_found")
            if method == "PATCH":
                found |= request.json
            elif method == "DELETE":
                tunnels.remove(found)
                return 204, None
            return 200, found
        case _:
            return 404, problem(404, "route_not_found")


def _open(asked: dict[str, Any], sandbox: dict[str, Any], tunnels: list[dict[str, Any]]) -> Answer:
    same = [one for one in tunnels if (one["kind"], one["port"]) == (asked["kind"], asked["port"])]
    if same:
        return 200, same[0]
    raw = asked["kind"] in {"tcp", "udp"}
    tunnels.append(
        {
            "id": "tun" + f"{len(tunnels):a>20}",
            "sandbox_id": sandbox["id"],
            "visibility": "public" if raw else "token",
            "allow_cidrs": [],
            "state": "open",
            "message": None,
            "host": HOST if raw else None,
            "public_port": 20_000 + len(tunnels) if raw else None,
            "url": None if raw else "http://stub.test/s",
            "path_url": None if raw else f"http://stub.test/s/{sandbox['id']}/{asked['port']}/",
            "in_bytes": 1024 if raw else None,
            "out_bytes": 2048 if raw else None,
            "created_at": NOW,
            **asked,
        }
    )
    return 201, tunnels[-1]


def token_of(asked: dict[str, Any], token: str) -> dict[str, Any]:
    """Answer the making of a token."""
    port = asked.get("port")
    url = None if port is None else f"http://{port}-box.stub.test/?sandlot_token={token}"
    return {"token": token, "expires_at": "2999-01-01T00:00:00Z", "scopes": [], "url": url}
