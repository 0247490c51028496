"""Derives what the client shares with the other side.

From the API's document what each object holds (`sandlot/document/`, a module for each area of calls) and each call
takes (`operations.py`); from the node's own code how patterns over paths are read (`_globs.py`), because what it
ignores must not be sent.
`python generate.py` writes them; `python generate.py --check` says whether they are up to date and changes nothing.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parents[1] / "openapi" / "api.json"
GLOBS = HERE.parents[1] / "sandboxd" / "builds" / "globs.py"
TARGET = HERE / "sandlot"

TYPES_HEADER = '''"""What the objects of the API hold. Derived by generate.py: change the API instead.

Every field may be absent: an older server does not have it. Enumerations are text: a newer server has more values.
"""


'''
AREA_HEADER = '"""What the calls of {area} take and answer. Derived by generate.py: change the API instead."""\n\n'
SHARED = "shared"
"""The module of what the calls of more than one area speak of, or none yet."""
CALLS_HEADER = '''"""The calls of the API by name. Derived by generate.py: change the API instead."""

from typing import Final, NamedTuple


class Operation(NamedTuple):
    """One call: its method, its path, and the names it takes."""

    method: str
    path: str
    query: tuple[str, ...] = ()
    body: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    """Those fields of the body that must be there."""


'''
SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def render(document: dict[str, Any]) -> dict[str, str]:
    """Return the modules, formatted as the linter wants them."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    return {
        **{f"document/{name}.py": _format(text) for name, text in _areas(document, schemas).items()},
        "operations.py": _format(CALLS_HEADER + _table(document, schemas)),
        "_globs.py": "# Derived by generate.py: change sandboxd/builds/globs.py instead.\n" + GLOBS.read_text(),
    }


def _areas(document: dict[str, Any], schemas: dict[str, Any]) -> dict[str, str]:
    """Return what objects hold as modules. What a shared one speaks of is shared too, so there are no cycles."""
    tags: dict[str, set[str]] = {name: set() for name in schemas}

    def reach(name: str, tag: str) -> None:
        if name in tags and tag not in tags[name]:
            tags[name].add(tag)
            for other in _named(schemas[name]):
                reach(other, tag)

    for call in (call for methods in document["paths"].values() for call in methods.values()):
        for name in _named(call):
            reach(name, call["tags"][0])
    held: dict[str, list[str]] = {}
    for name in _in_order(schemas):
        if "properties" in schemas[name]:
            held.setdefault(min(tags[name]) if len(tags[name]) == 1 else SHARED, []).append(name)
    modules = {area: _module(area, names, held[SHARED], schemas) for area, names in held.items()}
    imports = [
        f"from sandlot.document.{area} import {', '.join(sorted(names, key=str.lower))}"
        for area, names in sorted(held.items())
    ]
    everything = sorted(name for names in held.values() for name in names)
    return modules | {"__init__": "\n".join([TYPES_HEADER, *imports, f"__all__ = {everything!r}"])}


def _module(area: str, names: list[str], shared: list[str], schemas: dict[str, Any]) -> str:
    text = "\n\n".join(_class(name, schemas[name], schemas) for name in names)
    words = set(re.findall(r"\w+", text))
    typing = sorted(words & {"Any", "TypedDict"})
    others = [] if area == SHARED else sorted(words & set(shared))
    lines = [f"from typing import {', '.join(typing)}\n"]
    lines += [f"from sandlot.document.{SHARED} import {', '.join(others)}\n"] if others else []
    spoken_of = area if area != SHARED else "more than one area"
    return "\n".join([AREA_HEADER.format(area=spoken_of), *lines, "", text])


def _format(text: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET / "document.py"), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _in_order(schemas: dict[str, Any]) -> list[str]:
    """Return the names so that each comes after those it speaks of; a type may be used only where it is known."""
    done: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in done or name in path:
            return
        for other in sorted(_named(schemas[name])):
            visit(other, (*path, name))
        done[name] = None

    for name in sorted(schemas):
        visit(name, ())
    return list(done)


def _named(value: Any) -> set[str]:
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value)
        own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set[str]()
        return own.union(*(_named(one) for one in value.values()))
    return set[str]().union(*(_named(one) for one in cast("list[Any]", value))) if isinstance(value, list) else set()


def _class(name: str, schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    fields = {field: _type(one, schemas) for field, one in schema["properties"].items()}
    if all(field.isidentifier() and field not in {"from", "class"} for field in fields):
        return "\n".join(
            [f"class {name}(TypedDict, total=False):", *(f"    {key}: {kind}" for key, kind in fields.items()), ""]
        )
    inside = ", ".join(f'"{field}": {kind}' for field, kind in fields.items())
    return f'{name} = TypedDict("{name}", {{{inside}}}, total=False)\n'


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return name if "properties" in schemas[name] else _type(schemas[name], schemas)
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(one, schemas) for one in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        return f"list[{_type(schema.get('items', {}), schemas)}]"
    if kind == "object":
        more: Any = schema.get("additionalProperties")
        patterns = list(schema.get("patternProperties", {}).values())
        inner = cast("dict[str, Any]", more if isinstance(more, dict) else patterns[0] if patterns else {})
        return f"dict[str, {_type(inner, schemas)}]"
    return SCALARS.get(kind, "Any") if isinstance(kind, str) else "Any"


def _table(document: dict[str, Any], schemas: dict[str, Any]) -> str:
    rows: list[str] = []
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            query = tuple(parameter["name"] for parameter in one.get("parameters", []) if parameter["in"] == "query")
            content = one.get("requestBody", {}).get("content", {})
            reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            schema = schemas.get(reference.rpartition("/")[2], {})
            names = (query, tuple(schema.get("properties", {})), tuple(schema.get("required", [])))
            values = ", ".join(repr(value) for value in (method.upper(), path, *names))
            rows.append(f"    {one['operationId']!r}: Operation({values}),")
    return "\n".join(["OPERATIONS: Final = {", *sorted(rows), "}", ""])


def main(arguments: list[str]) -> int:
    files = render(json.loads(DOCUMENT.read_text()))
    stray = [name for path in (TARGET / "document").glob("*.py") if (name := f"document/{path.name}") not in files]
    if arguments == ["--check"]:
        stale = stray + [
            name for name, text in files.items() if not (TARGET / name).exists() or (TARGET / name).read_text() != text
        ]
        if stale:
            sys.stderr.write(f"not up to date: {', '.join(stale)}; run {Path(__file__).name}\n")
        return 1 if stale else 0
    (TARGET / "document").mkdir(exist_ok=True)
    for name in stray:
        (TARGET / name).unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
