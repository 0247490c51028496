"""The store's promises about secrets, on every engine it is given."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from api.services.sealing import seal_again
from api.services.secrets import open_value
from api.services.vault import open_vault
from api.store import identity, sandboxes
from api.store import secrets as store
from api.store.db import Database
from api.store.migrate import migrate
from api.store.secret_tables import Authority, Secret
from api.store.tables import Project, Sandbox
from sandboxd.contract.ids import new_id
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import SandboxState

URLS = ["sqlite", *filter(None, [os.environ.get("SANDLOT_TEST_DATABASE_URL")])]


@pytest.fixture(params=URLS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Database]:
    url: str = request.param
    opened = Database(f"sqlite:///{tmp_path / 'api.db'}" if url == "sqlite" else url)
    migrate(opened.engine)
    opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def project(database: Database) -> str:
    return await a_project(database)


async def a_project(database: Database) -> str:
    made = new_id("prj", os.urandom)
    record = Project(id=made, parent_id="x", name="p", created_at=0)
    await database.write(identity.insert_project_any_project, record)
    return made


def a_secret(project: str, **changes: Any) -> Secret:
    values: dict[str, Any] = {
        "project_id": project,
        "name": "TOKEN",
        "version": 1,
        "env": False,
        "hosts": ["example.com"],
        "sealed": b"\x00sealed\xff",
        "created_at": 1,
        "updated_at": 1,
        **changes,
    }
    return Secret(**values)


async def put(database: Database, secret: Secret, *, before: int = 0, most: int = 9) -> store.Put | None:
    return await database.write(store.put, secret.project_id, secret, before=before, most=most)


async def a_sandbox(database: Database, project: str) -> str:
    sandbox = Sandbox(
        id=new_id("sbx", os.urandom), project_id=project, key_id="key", state="running", desired_state="running",
        image_id="img", node_id="nod", spec={"egress": {"mode": "open", "generation": 1}}, egress_mode="open",
        incarnation="one", start_deadline_at=0, created_at=1, updated_at=1,
    )  # fmt: skip
    await database.write(sandboxes.insert_new, project, sandbox, or_existing=False)
    return sandbox.id


async def test_a_secret_comes_back_as_it_went_in(database: Database, project: str) -> None:
    secret = a_secret(project)
    done = await put(database, secret)
    assert done is not None
    assert done.created
    found = await database.read(store.get, project, "TOKEN")
    assert {**found.__dict__} == {**secret.__dict__}
    assert await database.read(store.find, await a_project(database), "TOKEN") is None


async def test_of_two_that_write_at_once_one_is_told(database: Database, project: str) -> None:
    await put(database, a_secret(project))
    done = await put(database, a_secret(project, version=2, created_at=5, updated_at=5), before=1)
    assert done is not None
    assert (done.created, done.secret.created_at) == (False, 1)
    assert await put(database, a_secret(project, version=2), before=1) is None
    assert await put(database, a_secret(project, version=1), before=0) is None


async def test_a_project_has_only_so_many(database: Database, project: str) -> None:
    await put(database, a_secret(project), most=1)
    with pytest.raises(ProblemError) as caught:
        await put(database, a_secret(project, name="b"), most=1)
    assert caught.value.code == "quota_exceeded"
    assert await put(database, a_secret(await a_project(database), name="b"), most=1) is not None


async def test_what_is_used_cannot_go(database: Database, project: str) -> None:
    await put(database, a_secret(project))
    sandbox = await a_sandbox(database, project)
    await database.write(store.use, project, sandbox, "inject", {"TOKEN"})
    with pytest.raises(ProblemError) as caught:
        await database.write(store.remove, project, "TOKEN")
    assert caught.value.code == "in_use"
    done = await put(database, a_secret(project, version=2, updated_at=7), before=1)
    assert done is not None
    assert done.told == [sandbox]
    row = await database.read(sandboxes.get, project, sandbox)
    assert (row.egress_generation, row.spec["egress"]["generation"], row.egress_asked_at) == (2, 2, 7)
    await database.write(store.use, project, sandbox, "inject", set())
    await database.write(store.remove, project, "TOKEN")
    with pytest.raises(ProblemError) as caught:
        await database.write(store.use, project, sandbox, "env", {"TOKEN"})
    assert caught.value.code == "secret_not_found"


async def test_the_end_of_a_sandbox_lets_go(database: Database, project: str) -> None:
    await put(database, a_secret(project))
    sandbox = await a_sandbox(database, project)
    await database.write(store.use, project, sandbox, "env", {"TOKEN"})
    await database.write(sandboxes.ask_stop, project, sandbox, now_us=2, match=None)
    with pytest.raises(ProblemError):
        await database.write(store.remove, project, "TOKEN")
    await database.write(
        sandboxes.end_any_project, sandbox, state=SandboxState.STOPPED, reason=SandboxReason.REQUESTED, message=None,
        now_us=3,
    )  # fmt: skip
    await database.write(store.remove, project, "TOKEN")
    assert await database.write(sandboxes.purge_any_project, ended_before_us=9, limit=9) == 1


async def test_a_project_keeps_its_first_authority(database: Database, project: str) -> None:
    first = Authority(project_id=project, certificate="one", sealed_key=b"1", created_at=1)
    other = Authority(project_id=project, certificate="two", sealed_key=b"2", created_at=2)
    assert (await database.write(store.keep_authority, project, first)).certificate == "one"
    assert (await database.write(store.keep_authority, project, other)).certificate == "one"


async def test_a_new_key_seals_everything_anew(database: Database, project: str, tmp_path: Path) -> None:
    old = open_vault(tmp_path / "old", os.urandom)
    sealed = old.seal(b"value", ("secret", project, "TOKEN", "1"))
    await put(database, a_secret(project, sealed=sealed))
    await put(database, a_secret(project, name="lost", sealed=b"\x01nobody's key at all"))
    both = tmp_path / "both"
    new = open_vault(tmp_path / "new", os.urandom)
    both.write_bytes(joined((tmp_path / "old").read_bytes(), (tmp_path / "new").read_bytes()))
    await database.write(seal_again, open_vault(both, os.urandom))
    row = await database.read(store.get, project, "TOKEN")
    assert open_value(new, row) == "value"
    assert (await database.read(store.get, project, "lost")).sealed == b"\x01nobody's key at all"


def joined(*files: bytes) -> bytes:
    from api.services.vault import parse, render  # noqa: PLC0415 - beside what it does

    return render([key for file in files for key in parse(file)])
