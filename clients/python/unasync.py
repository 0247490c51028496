"""Derives `sandlot/_sync` from `sandlot/_async`: same code, without the waiting words.

`python unasync.py` writes it; `python unasync.py --check` says whether it is up to date and changes nothing.
"""

import io
import subprocess
import sys
import tokenize
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "sandlot" / "_async"
TARGET = HERE / "sandlot" / "_sync"

NAMES = {
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncAttachment": "Attachment",
    "AsyncClient": "Client",
    "AsyncConnection": "Connection",
    "AsyncEgress": "Egress",
    "AsyncFiles": "Files",
    "AsyncGenerator": "Generator",
    "AsyncImages": "Images",
    "AsyncIterator": "Iterator",
    "AsyncLock": "Lock",
    "AsyncOutput": "Output",
    "AsyncProcess": "Process",
    "AsyncRoute": "Route",
    "AsyncRun": "Run",
    "AsyncSandbox": "Sandbox",
    "AsyncSecrets": "Secrets",
    "AsyncTunnels": "Tunnels",
    "AsyncWebSocket": "WebSocket",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "async_in_thread": "in_thread",
    "async_shield": "shield",
    "async_sleep": "sleep",
    "async_steps": "steps",
    "asynccontextmanager": "contextmanager",
}
DROPPED = {"async", "await"}
HEADER = "# Derived from _async by unasync.py: change it there.\n"


def derive(source: str, name: str) -> str:
    """Return the sync form of a module, formatted as the linter wants it."""
    lines = source.splitlines(keepends=True)
    edits: list[tuple[int, int, int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, start = token.start
        end = token.end[1]
        if token.type == tokenize.NAME and token.string in DROPPED:
            rest = lines[row - 1][end:]
            edits.append((row, start, end + len(rest) - len(rest.lstrip(" ")), ""))
        elif token.type == tokenize.NAME and token.string in NAMES:
            edits.append((row, start, end, NAMES[token.string]))
        elif token.type == tokenize.STRING and token.start[0] == token.end[0]:
            edits.append((row, start, end, _text(token.string)))
        elif token.type == tokenize.STRING:
            _edit_long_text(token, lines)
    for row, start, end, text in sorted(edits, reverse=True):
        line = lines[row - 1]
        lines[row - 1] = line[:start] + text + line[end:]
    return _format(HEADER + "".join(lines), name)


def _text(text: str) -> str:
    """Rename what strings quote: forward references, and words of docstrings."""
    for name, sync_name in NAMES.items():
        text = text.replace(name, sync_name) if name != "_async" else text
    return text.replace("async with", "with").replace("`async ", "`")


def _edit_long_text(token: tokenize.TokenInfo, lines: list[str]) -> None:
    first, last = token.start[0], token.end[0]
    for row in range(first - 1, last):
        lines[row] = _text(lines[row])


def _format(text: str, name: str) -> str:
    shown = str(TARGET / name)
    for arguments in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", shown, "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def expected() -> dict[str, str]:
    """Return the content every file of `_sync` should have."""
    files = {path.name: derive(path.read_text(), path.name) for path in sorted(SOURCE.glob("*.py"))}
    files["__init__.py"] = f'"""The blocking client. {HEADER[2:].strip()}"""\n'
    return files


def stale() -> list[str]:
    """Return the names of files in `_sync` that differ from what they should be."""
    files = expected()
    there = {path.name for path in TARGET.glob("*.py")}
    return sorted(
        {name for name, text in files.items() if name not in there or (TARGET / name).read_text() != text}
        | (there - set(files))
    )


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        names = stale()
        if names:
            sys.stderr.write(f"not up to date: {', '.join(names)}; run {Path(__file__).name}\n")
        return 1 if names else 0
    TARGET.mkdir(exist_ok=True)
    files = expected()
    for path in TARGET.glob("*.py"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
