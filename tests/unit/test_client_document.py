"""The client keeps to the API's document."""

import inspect
import subprocess
import sys
from pathlib import Path

from sandlot import Sandbox, document
from sandlot.operations import OPERATIONS

_CLIENT = Path(__file__).resolve().parents[2] / "clients" / "python"


def test_the_derived_core_is_current() -> None:
    command = [sys.executable, str(_CLIENT / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_create_has_a_keyword_for_every_field() -> None:
    keywords = set(inspect.signature(Sandbox.create).parameters)
    assert set(document.CreateSandbox.__annotations__) - {"wait_seconds"} <= keywords


def test_the_table_has_every_call() -> None:
    run = OPERATIONS["run"]
    assert (run.method, run.path) == ("POST", "/v1/sandboxes/{sandbox_id}/run")
    assert {"argv", "shell", "input"} <= set(run.body)
    assert OPERATIONS["read_output"].query[:2] == ("after", "tail_bytes")
