"""The docs say what is so: links, examples, promises, settings, errors, dependencies."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from infra.reference.__main__ import stale

ROOT = Path(__file__).resolve().parents[1]
LONGEST_README = 150
WORDS_NOT_OURS = (
    "workspace",
    "devbox",
    "orchestrator",
    "whitelist",
    "preview url",
    "port forward",
    "microvm",
    "blueprint",
)


@cache
def pages() -> dict[str, str]:
    """Every Markdown page that is ours to keep, by its name in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name: (ROOT / name).read_text() for name in listed.split("\0") if name and (ROOT / name).is_file()}


def test_readme_is_short() -> None:
    assert pages()["README.md"].count("\n") <= LONGEST_README


def test_readme_has_one_picture_and_the_examples() -> None:
    text = pages()["README.md"]
    assert re.findall(r"<!-- test: (\w+) -->\n```", text) == ["curl", "cli", "python"]
    assert text.count("┌") >= 1
    curl = text.split("<!-- test: curl -->")[1].split("```")[1]
    assert len(curl.strip().splitlines()) - 1 <= 10


def test_python_blocks_compile() -> None:
    blocks = [
        (name, block) for name, text in pages().items() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ]
    assert blocks
    for name, block in blocks:
        compile(block, name, "exec")


def test_shell_blocks_parse() -> None:
    blocks = [block for text in pages().values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
    assert blocks
    for block in blocks:
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, block + done.stderr


def test_examples_compile() -> None:
    for path in (ROOT / "examples").rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


def test_links_lead_somewhere() -> None:
    broken: list[tuple[str, str]] = []
    for name, text in pages().items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"https?://|mailto:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append((name, target))
    assert not broken


def _anchors(file: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_paths_named_in_the_docs_exist() -> None:
    tops = "api|sandboxd|netpolicy|tunnels|programs|clients|infra|tests|examples|docs"
    missing = [
        (name, path)
        for name, text in pages().items()
        for path in re.findall(rf"`((?:{tops})/[\w./-]*\w)/?`", text)
        if not (ROOT / path).exists()
    ]
    assert not missing


def test_every_promise_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| ([A-Z]\d+) \| .* \| (.*) \|$", pages()["docs/specification.md"], re.MULTILINE)
    assert len({number for number, _ in rows}) == len(rows)
    missing: list[tuple[str, str]] = []
    for number, held_by in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", held_by)
        if not named and not number.startswith("B"):
            missing.append((number, held_by))
        for file, test in named:
            path = ROOT / file
            if not path.is_file() or not re.search(rf"^\s*(?:async )?def {test}\(", path.read_text(), re.MULTILINE):
                missing.append((number, f"{file}::{test}"))
    assert not missing


def test_reference_pages_are_up_to_date() -> None:
    assert not stale(), "run 'python -m infra.reference'"


@pytest.mark.parametrize(
    ("title", "declared_in"),
    [
        ("Server", lambda: _project(ROOT / "pyproject.toml")["project"]["dependencies"]),
        ("Development", lambda: _project(ROOT / "pyproject.toml")["dependency-groups"]["dev"]),
        ("Client", lambda: _project(ROOT / "clients/python/pyproject.toml")["project"]["dependencies"]),
        ("Guest", lambda: _go_modules(ROOT / "sandboxd/guest/go.mod")),
    ],
    ids=["server", "development", "client", "guest"],
)
def test_every_dependency_has_its_reason(title: str, declared_in: Callable[[], list[str]]) -> None:
    page = pages()["docs/decisions/dependencies.md"]
    (section,) = [part for part in page.split("\n## ") if part.startswith(title)]
    reasons = dict(re.findall(r"^- `([^`]+)`: (.+)$", section, re.MULTILINE))
    declared = {text if "/" in text else Requirement(text).name for text in declared_in()}
    assert set(reasons) == declared


def _project(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def _go_modules(path: Path) -> list[str]:
    return re.findall(r"^\s+([\w.-]+\.[\w./-]+/\S+) v\S+$", path.read_text(), re.MULTILINE)


def test_one_word_for_each_thing() -> None:
    own = {name: text for name, text in pages().items() if name != "docs/glossary.md"}
    found = [(name, word) for name, text in own.items() for word in WORDS_NOT_OURS if word in text.lower()]
    assert not found


def test_decisions_have_their_four_parts() -> None:
    for name, text in pages().items():
        if re.match(r"docs/decisions/\d{4}-", name):
            parts = re.findall(r"^\*\*(.+?)\.\*\*", text, re.MULTILINE)
            assert parts == ["Context", "Choice", "What it costs", "What would change it"], name
            assert text.startswith(f"# {int(Path(name).name[:4])}. "), name


def test_the_changelog_has_its_form() -> None:
    text = pages()["CHANGELOG.md"]
    assert "## [Unreleased]" in text
    kinds = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_example_projects_own_suite_passes_here(tmp_path: Path) -> None:
    project = ROOT / "examples" / "python-tests"
    command = [sys.executable, "-B", "run_tests.py", "--report", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
