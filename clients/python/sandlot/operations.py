"""The calls of the API by name. Derived by generate.py: change the API instead."""

from typing import Final, NamedTuple


class Operation(NamedTuple):
    """One call: its method, its path, and the names it takes."""

    method: str
    path: str
    query: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    """Those fields of the body that must be there."""


OPERATIONS: Final = {
    "attach_process": Operation(
        "GET", "/v1/sandboxes/{sandbox_id}/processes/{process_id}/attach", ("after", "tail_bytes"), (), ()
    ),
    "change_file": Operation(
        "PATCH",
        "/v1/sandboxes/{sandbox_id}/files",
        (),
        ("path", "path_base64", "user", "mode", "owner", "group", "modified_at", "recursive"),
        (),
    ),
    "close_tunnel": Operation("DELETE", "/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}", (), (), ()),
    "create_image": Operation(
        "POST",
        "/v1/images",
        (),
        (
            "registry",
            "archive",
            "build",
            "sandbox",
            "snapshot",
            "tags",
            "visibility",
            "config",
            "metadata",
            "wait_seconds",
        ),
        (),
    ),
    "create_sandbox": Operation(
        "POST",
        "/v1/sandboxes",
        (),
        (
            "image",
            "use_image_entrypoint",
            "env",
            "secret_env",
            "metadata",
            "user",
            "cwd",
            "resources",
            "timeout_seconds",
            "idle_timeout_seconds",
            "idle_ignores_processes",
            "on_timeout",
            "on_idle",
            "paused_retention_seconds",
            "egress",
            "name",
            "if_exists",
            "entrypoint",
            "tunnels",
            "wait_seconds",
        ),
        (),
    ),
    "create_token": Operation(
        "POST",
        "/v1/sandboxes/{sandbox_id}/tokens",
        (),
        ("scopes", "expires_in_seconds", "port", "path", "identity"),
        ("scopes",),
    ),
    "delete_image": Operation("DELETE", "/v1/images/{image_id}", (), (), ()),
    "delete_sandbox": Operation("DELETE", "/v1/sandboxes/{sandbox_id}", ("grace_seconds", "wait_seconds"), (), ()),
    "delete_sandboxes": Operation("POST", "/v1/sandboxes/delete", (), ("filter", "dry_run"), ("filter",)),
    "delete_secret": Operation("DELETE", "/v1/secrets/{secret_name}", (), (), ()),
    "delete_tag": Operation("DELETE", "/v1/tags/{tag_name}", (), (), ()),
    "dial_port": Operation("GET", "/v1/sandboxes/{sandbox_id}/dial", ("port",), (), ()),
    "explain_egress": Operation(
        "POST", "/v1/sandboxes/{sandbox_id}/egress/explain", (), ("destination", "policy"), ("destination",)
    ),
    "extend_sandbox": Operation(
        "POST", "/v1/sandboxes/{sandbox_id}/extend", (), ("timeout_seconds",), ("timeout_seconds",)
    ),
    "get_egress": Operation("GET", "/v1/sandboxes/{sandbox_id}/egress", (), (), ()),
    "get_error": Operation("GET", "/errors/{code}", (), (), ()),
    "get_health": Operation("GET", "/healthz", (), (), ()),
    "get_image": Operation("GET", "/v1/images/{image_id}", ("wait_seconds", "wait_for"), (), ()),
    "get_me": Operation("GET", "/v1/me", (), (), ()),
    "get_metrics": Operation("GET", "/metrics", (), (), ()),
    "get_process": Operation(
        "GET", "/v1/sandboxes/{sandbox_id}/processes/{process_id}", ("wait_seconds", "wait_for"), (), ()
    ),
    "get_public_keys": Operation("GET", "/.well-known/jwks.json", (), (), ()),
    "get_readiness": Operation("GET", "/readyz", (), (), ()),
    "get_result": Operation(
        "GET",
        "/v1/sandboxes/{sandbox_id}/processes/{process_id}/result",
        ("wait_seconds", "max_output_bytes", "keep", "output_encoding"),
        (),
        (),
    ),
    "get_sandbox": Operation("GET", "/v1/sandboxes/{sandbox_id}", ("wait_seconds", "wait_for"), (), ()),
    "get_secret": Operation("GET", "/v1/secrets/{secret_name}", (), (), ()),
    "get_tag": Operation("GET", "/v1/tags/{tag_name}", (), (), ()),
    "get_tunnel": Operation("GET", "/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}", (), (), ()),
    "head_upload": Operation("HEAD", "/v1/uploads/{sha256}", (), (), ()),
    "list_decisions": Operation(
        "GET", "/v1/sandboxes/{sandbox_id}/egress/decisions", ("after", "verdict", "since", "limit"), (), ()
    ),
    "list_directory": Operation(
        "GET",
        "/v1/sandboxes/{sandbox_id}/directories",
        ("path", "path_base64", "user", "depth", "limit", "cursor"),
        (),
        (),
    ),
    "list_images": Operation("GET", "/v1/images", ("state", "tag", "visibility", "limit", "cursor", "order"), (), ()),
    "list_ports": Operation("GET", "/v1/sandboxes/{sandbox_id}/ports", ("port", "wait_seconds"), (), ()),
    "list_processes": Operation(
        "GET", "/v1/sandboxes/{sandbox_id}/processes", ("state", "tag", "limit", "cursor", "order"), (), ()
    ),
    "list_sandboxes": Operation(
        "GET",
        "/v1/sandboxes",
        ("state", "name", "image_id", "key_id", "created_after", "created_before", "limit", "cursor", "order"),
        (),
        (),
    ),
    "list_secrets": Operation("GET", "/v1/secrets", ("limit", "cursor"), (), ()),
    "list_tags": Operation("GET", "/v1/tags", ("limit", "cursor"), (), ()),
    "list_tunnels": Operation("GET", "/v1/sandboxes/{sandbox_id}/tunnels", (), (), ()),
    "look_at_file": Operation("HEAD", "/v1/sandboxes/{sandbox_id}/files", ("path", "path_base64", "user"), (), ()),
    "make_directory": Operation(
        "PUT", "/v1/sandboxes/{sandbox_id}/directories", (), ("path", "path_base64", "user", "mode", "parents"), ()
    ),
    "move_file": Operation(
        "POST",
        "/v1/sandboxes/{sandbox_id}/files/move",
        (),
        ("from", "from_base64", "to", "to_base64", "overwrite", "user"),
        (),
    ),
    "open_tunnel": Operation(
        "POST",
        "/v1/sandboxes/{sandbox_id}/tunnels",
        (),
        ("port", "kind", "visibility", "allow_cidrs", "server_name"),
        ("port", "kind"),
    ),
    "patch_image": Operation("PATCH", "/v1/images/{image_id}", (), ("visibility", "metadata"), ()),
    "patch_sandbox": Operation(
        "PATCH",
        "/v1/sandboxes/{sandbox_id}",
        (),
        (
            "name",
            "metadata",
            "timeout_seconds",
            "idle_timeout_seconds",
            "on_timeout",
            "on_idle",
            "paused_retention_seconds",
        ),
        (),
    ),
    "patch_tunnel": Operation(
        "PATCH", "/v1/sandboxes/{sandbox_id}/tunnels/{tunnel_id}", (), ("visibility", "allow_cidrs"), ()
    ),
    "put_egress": Operation(
        "PUT", "/v1/sandboxes/{sandbox_id}/egress", (), ("mode", "allow", "deny", "inject", "limits"), ("mode",)
    ),
    "put_secret": Operation("PUT", "/v1/secrets/{secret_name}", (), ("value", "value_base64", "env", "hosts"), ()),
    "put_tag": Operation("PUT", "/v1/tags/{tag_name}", (), ("image_id",), ("image_id",)),
    "put_upload": Operation("PUT", "/v1/uploads/{sha256}", ("offset", "total_bytes"), (), ()),
    "read_archive": Operation(
        "GET", "/v1/sandboxes/{sandbox_id}/archive", ("path", "path_base64", "user", "format", "exclude"), (), ()
    ),
    "read_file": Operation("GET", "/v1/sandboxes/{sandbox_id}/files", ("path", "path_base64", "user"), (), ()),
    "read_image_log": Operation("GET", "/v1/images/{image_id}/log", ("after", "follow"), (), ()),
    "read_logs": Operation("GET", "/v1/sandboxes/{sandbox_id}/logs", ("after", "process_id", "follow"), (), ()),
    "read_metrics": Operation("GET", "/v1/sandboxes/{sandbox_id}/metrics", ("start", "end", "step_seconds"), (), ()),
    "read_output": Operation(
        "GET",
        "/v1/sandboxes/{sandbox_id}/processes/{process_id}/output",
        ("after", "tail_bytes", "follow", "keepalive_seconds"),
        (),
        (),
    ),
    "remove_file": Operation(
        "DELETE", "/v1/sandboxes/{sandbox_id}/files", ("path", "path_base64", "user", "recursive", "missing_ok"), (), ()
    ),
    "resize_terminal": Operation(
        "POST", "/v1/sandboxes/{sandbox_id}/processes/{process_id}/resize", (), ("rows", "cols"), ("rows", "cols")
    ),
    "run": Operation(
        "POST",
        "/v1/sandboxes/{sandbox_id}/run",
        (),
        (
            "id",
            "argv",
            "shell",
            "env",
            "with_secrets",
            "cwd",
            "user",
            "merge_stderr",
            "kill_grace_seconds",
            "tag",
            "input",
            "input_base64",
            "timeout_seconds",
            "wait_seconds",
            "max_output_bytes",
            "keep",
            "output_encoding",
        ),
        (),
    ),
    "run_once": Operation(
        "POST",
        "/v1/run",
        (),
        (
            "image",
            "env",
            "secret_env",
            "metadata",
            "user",
            "cwd",
            "resources",
            "timeout_seconds",
            "idle_timeout_seconds",
            "idle_ignores_processes",
            "on_timeout",
            "on_idle",
            "paused_retention_seconds",
            "egress",
            "command",
            "files",
            "wait_seconds",
        ),
        ("command",),
    ),
    "signal_process": Operation(
        "POST", "/v1/sandboxes/{sandbox_id}/processes/{process_id}/signal", (), ("signal", "scope"), ("signal",)
    ),
    "start_process": Operation(
        "POST",
        "/v1/sandboxes/{sandbox_id}/processes",
        (),
        (
            "id",
            "argv",
            "shell",
            "env",
            "with_secrets",
            "cwd",
            "user",
            "merge_stderr",
            "kill_grace_seconds",
            "tag",
            "tty",
            "stdin",
            "timeout_seconds",
            "output",
        ),
        (),
    ),
    "stat_file": Operation(
        "GET", "/v1/sandboxes/{sandbox_id}/files/stat", ("path", "path_base64", "user", "follow"), (), ()
    ),
    "watch_files": Operation(
        "GET", "/v1/sandboxes/{sandbox_id}/watch", ("path", "path_base64", "user", "recursive"), (), ()
    ),
    "write_archive": Operation(
        "PUT",
        "/v1/sandboxes/{sandbox_id}/archive",
        ("path", "path_base64", "user", "format", "strip_components", "overwrite"),
        (),
        (),
    ),
    "write_file": Operation(
        "PUT", "/v1/sandboxes/{sandbox_id}/files", ("path", "path_base64", "user", "mode", "parents", "append"), (), ()
    ),
    "write_stdin": Operation(
        "POST", "/v1/sandboxes/{sandbox_id}/processes/{process_id}/stdin", ("offset", "close"), (), ()
    ),
}
