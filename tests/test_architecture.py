"""The rules of this repository that no linter knows: layers, sizes, tests for every module, words, settings, lock."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from api.config import Settings
from infra.config import LauncherConfig
from sandboxd.config import NodeConfig
from sandboxd.contract.problems import CODES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("api", "sandboxd", "netpolicy", "tunnels", "programs", "infra", "openapi", "clients/python/sandlot")
LARGEST_MODULE = 600
LOCKS = {"requirements.lock", "infra/locks/uv.txt", "infra/locks/go.txt", "infra/locks/inspect.txt"}
BINARY = {".png", ".ico", ".woff2", ".erofs", ".tar", ".gz"}

# Pieces, so that this file does not break its own rule.
REGISTRY_HOSTS = (
    "py" + "pi.org",
    "python" + "hosted.org",
    "registry." + "npmjs",
    "proxy.go" + "lang.org",
    "sum.go" + "lang.org",
    "deb." + "debian.org",
    "archive." + "ubuntu.com",
)
PLACES_OF_ONE_MACHINE = ("/" + "work/", "/tmp/" + "spike", "/root/" + ".cache", "/tmp/" + "seam")
IMPORT = re.compile(r"^\s*(?:from ([\w.]+) import ([^\n(]+|\([^)]*\))|import ([\w.]+))", re.MULTILINE)
EMPTY_NAMES = {"utils", "helpers", "common", "misc", "util", "helper", "manager2"}
WORDS_NOT_OURS = {
    "tenant_id": "project",
    "organization_id": "project",
    "api_token": "API key",
    "workspace": "project",
}


@cache
def committed() -> tuple[Path, ...]:
    """Every file git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


@cache
def texts() -> dict[str, str]:
    """Every committed text file by its name in the repository."""
    return {
        str(path.relative_to(ROOT)): path.read_text(errors="replace")
        for path in committed()
        if path.suffix not in BINARY
    }


def modules() -> list[str]:
    return [
        name
        for name in texts()
        if name.endswith(".py") and name.startswith(tuple(f"{package}/" for package in PACKAGES))
    ]


def test_layers_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_api_document_is_current() -> None:
    command = [sys.executable, "-m", "openapi.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run 'make openapi'\n{done.stdout}{done.stderr}"


def test_no_module_is_too_long() -> None:
    sources = {name: text for name, text in texts().items() if name.endswith((".py", ".go", ".sh"))}
    long = {name: lines for name, text in sources.items() if (lines := text.count("\n")) > LARGEST_MODULE}
    assert not long


def test_modules_are_named_for_what_they_hold() -> None:
    empty = [name for name in texts() if EMPTY_NAMES & set(Path(name).with_suffix("").parts)]
    assert not empty


def test_every_module_with_logic_is_used_by_a_test() -> None:
    """A module counts as tested when a test, or something a test imports, imports it."""
    graph = {name: imports(name) for name in texts() if name.endswith(".py")}
    pending = [name for name in graph if name.startswith("tests/")]
    # Programs are entered by name, not by import.
    seen = {name for name in graph if name.endswith("__main__.py")} | set(pending)
    pending += [name for name in seen if name not in pending]
    while pending:
        for module in graph[pending.pop()]:
            for name in files_of(module):
                if name in graph and name not in seen:
                    seen.add(name)
                    pending.append(name)
    untested = [name for name in modules() if has_logic(name) and name not in seen]
    assert not untested


def imports(name: str) -> set[str]:
    """Return the dotted modules, and names that may be modules, that a file imports."""
    found: set[str] = set()
    for match in re.finditer(
        r"^\s*(?:from ([\w.]+) import ([^\n(]+|\([^)]*\))|import ([\w.]+))", texts()[name], re.MULTILINE
    ):
        if match[3]:
            found.add(match[3])
            continue
        found.add(match[1])
        found |= {f"{match[1]}.{part.split(' as ')[0].strip()}" for part in match[2].strip("()").split(",")}
    # A program a test starts by its name.
    return found | set(re.findall(r'"-m", "([\w.]+)"', texts()[name]))


def files_of(module: str) -> list[str]:
    """Return the files that importing a dotted name runs."""
    parts = module.split(".")
    prefix = "clients/python/" if parts[0] == "sandlot" else ""
    names = [prefix + "/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return [f"{name}.py" for name in names] + [f"{name}/__init__.py" for name in names] + [f"tests/{parts[0]}.py"]


def has_logic(name: str) -> bool:
    return re.search(r"^\s*(?:async )?def ", texts()[name], re.MULTILINE) is not None and "/migrations/" not in name


@pytest.mark.parametrize("words", [REGISTRY_HOSTS, PLACES_OF_ONE_MACHINE], ids=["registries", "places"])
def test_no_address_that_holds_on_one_machine_only(words: tuple[str, ...]) -> None:
    found = [(name, word) for name, text in texts().items() for word in words if word in text]
    assert not found


def test_locks_hold_hashes_and_no_addresses() -> None:
    for name in LOCKS:
        text = (ROOT / name).read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text


def test_no_word_of_others_for_our_things() -> None:
    sources = {name: text for name, text in texts().items() if name.endswith(".py") and not name.startswith("tests/")}
    found = [
        (name, word, f"say {instead}")
        for name, text in sources.items()
        for word, instead in WORDS_NOT_OURS.items()
        if re.search(rf"\b{word}\b", text)
    ]
    assert not found


def test_the_lock_fits_the_declared_dependencies() -> None:
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    by_name = {canonicalize_name(name): Version(version) for name, version in locked.items()}
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())
    client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())
    declared = (
        server["project"]["dependencies"] + server["dependency-groups"]["dev"] + client["project"]["dependencies"]
    )
    wanted = [requirement for text in declared if (requirement := Requirement(text)).name != client["project"]["name"]]
    stale = [
        str(requirement)
        for requirement in wanted
        if (version := by_name.get(canonicalize_name(requirement.name))) is None or version not in requirement.specifier
    ]
    assert not stale, "run 'make lock'"


def test_settings_are_documented() -> None:
    docs = "\n".join(text for name, text in texts().items() if name.endswith(".md"))
    fields = {*NodeConfig.model_fields, *Settings.model_fields, *LauncherConfig.model_fields}
    missing = [name for field in sorted(fields) if (name := f"SANDLOT_{field.upper()}") not in docs]
    assert not missing


def test_a_setting_two_programs_read_means_the_same() -> None:
    pairs = [(NodeConfig, Settings), (NodeConfig, LauncherConfig), (Settings, LauncherConfig)]
    differing = [
        (field, one.__name__, other.__name__)
        for one, other in pairs
        for field in set(one.model_fields) & set(other.model_fields)
        if one.model_fields[field].default != other.model_fields[field].default
    ]
    assert not differing


def test_error_codes_are_documented() -> None:
    docs = "\n".join(text for name, text in texts().items() if name.startswith("docs/") and name.endswith(".md"))
    missing = [code for code in CODES if f"`{code}`" not in docs]
    assert not missing


def test_every_package_is_in_the_import_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    tops = {Path(name).parts[0] for name in modules() if not name.startswith("clients/")}
    assert tops == set(contracts["root_packages"])


def test_test_files_have_unique_names() -> None:
    names = [Path(name).name for name in texts() if name.startswith("tests/") and Path(name).name.startswith("test_")]
    assert len(names) == len(set(names))
