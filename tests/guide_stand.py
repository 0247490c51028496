"""Runs the examples of a page and compares what they print: `pycon` blocks as one session, `console` as another."""

import doctest
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from stub_process import StubProcess

PAGE = Path(__file__).resolve().parents[1] / "clients" / "python" / "README.md"
_FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL & 0
_MARK = "\x1e"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def session() -> str:
    """Run the Python examples as one session, and return what differed; nothing if nothing did."""
    said: list[str] = []
    text = "\n".join(blocks("pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    doctest.DocTestRunner(verbose=False, optionflags=_FLAGS).run(test, out=said.append)
    return "".join(said)


def console(environment: dict[str, str]) -> list[tuple[str, str, str]]:
    """Run the shell examples in one shell, and return command, expected and actual output of each that differed."""
    steps = [
        (found[1], found[2])
        for block in blocks("console")
        for found in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]
    script = "".join(f"{command}\nprintf '{_MARK}'\n" for command, _ in steps)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"],
        env=os.environ | environment | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    outputs = done.stdout.split(_MARK)
    return [
        (command, expected, actual)
        for (command, expected), actual in zip(steps, outputs, strict=False)
        if not _like(expected, actual)
    ]


def _like(expected: str, actual: str) -> bool:
    """Compare, with ... for anything and any number of spaces as one."""
    pattern = re.escape(" ".join(expected.split())).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, " ".join(actual.split())) is not None


def act_here(process: StubProcess) -> None:
    """Let a process of the stub do on this machine what its argv says: the examples are our own."""
    if process.exit is None and process.argv != ["cat"]:
        threading.Thread(target=_act, args=(process,), daemon=True).start()


def _act(process: StubProcess) -> None:
    takes_input = not process.stdin_closed
    if takes_input:
        with process.changed:
            process.changed.wait_for(lambda: process.stdin_closed or b"\n" in process.stdin)
    argv = process.argv
    try:
        child = subprocess.Popen[bytes](
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except FileNotFoundError:
        error: dict[str, Any] = {"code": "command_not_found", "message": f"{argv[0]}: command not found"}
        process.end(127, "not_started", start_error=error)
        return
    stopper = threading.Thread(target=_stop_with, args=(process, child), daemon=True)
    stopper.start()
    out, err = child.communicate(bytes(process.stdin))
    is_terminal = "tty" in process.spec
    for kind, data in (("terminal" if is_terminal else "stdout", out), ("stderr", err)):
        if data:
            process.write(kind, data)
    if process.exit is None:
        process.end(child.returncode)


def _stop_with(process: StubProcess, child: subprocess.Popen[bytes]) -> None:
    with process.changed:
        process.changed.wait_for(lambda: process.exit is not None)
    if child.poll() is None:
        child.kill()
