"""The store's promises, on every engine it is given: SQLite, and what SANDLOT_TEST_DATABASE_URL names."""

import ast
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from api.errors import NameTakenError, SandboxNotFoundError
from api.store import idempotency, identity, image_tables, sandboxes, secret_tables
from api.store.db import Database
from api.store.idempotency import Key
from api.store.migrate import HEAD, migrate
from api.store.sandboxes import Filter
from api.store.tables import METADATA, SANDBOXES, Project, Sandbox
from api.store.upgrade import SCRIPTS
from sandboxd.contract.ids import new_id
from sandboxd.contract.messages import SandboxReport
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import TERMINAL, SandboxState, is_legal

URLS = ["sqlite", *filter(None, [os.environ.get("SANDLOT_TEST_DATABASE_URL")])]
STORE = Path(sandboxes.__file__).parent
MODELS = (image_tables, secret_tables)
"""Imported, so that METADATA has their tables."""
NODE = "nod" + "a" * 20
ONE, TWO = "prj" + "a" * 20, "prj" + "b" * 20
NO_FILTER = Filter(metadata={})


@pytest.fixture(params=URLS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Database]:
    url: str = request.param
    opened = Database(f"sqlite:///{tmp_path / 'api.db'}" if url == "sqlite" else url)
    migrate(opened.engine)
    opened.open()
    for project in (ONE, TWO):
        record = Project(id=project, parent_id="x", name="p", created_at=0)
        await opened.write(identity.insert_project_any_project, record)
    yield opened
    await opened.close()


def a_sandbox(**changes: Any) -> Sandbox:
    values: dict[str, Any] = {
        "id": new_id("sbx", os.urandom),
        "project_id": ONE,
        "key_id": "key",
        "state": "pending",
        "desired_state": "running",
        "image_id": "img",
        "node_id": NODE,
        "spec": {},
        "egress_mode": "open",
        "incarnation": "one",
        "start_deadline_at": 0,
        "created_at": time.time_ns() // 1000,
        "updated_at": 0,
        **changes,
    }
    return Sandbox(**values)


async def put(database: Database, **changes: Any) -> Sandbox:
    sandbox = a_sandbox(**changes)
    return (await database.write(sandboxes.insert_new, sandbox.project_id, sandbox, or_existing=False)).sandbox


def said(sandbox: Sandbox, state: SandboxState, **changes: Any) -> SandboxReport:
    return SandboxReport(id=sandbox.id, generation=1, state=state, **changes)


async def test_migrations_make_the_tables_of_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


async def test_migrating_again_changes_nothing(database: Database) -> None:
    await put(database)
    await asyncio.to_thread(migrate, database.engine)
    assert len(await database.read(sandboxes.taken_by_any_project, NODE)) == 0


def test_the_newest_migration_is_the_one_that_is_looked_for() -> None:
    assert ScriptDirectory(str(SCRIPTS)).get_heads() == [HEAD]


def test_an_api_whose_database_is_up_to_date_starts_without_the_tool_of_migrations() -> None:
    program = "import sys, api.app.server; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def test_what_is_read_sees_what_was_handed_in_before(database: Database) -> None:
    sandbox = a_sandbox()
    promised = database.write_soon(sandboxes.insert_new, ONE, sandbox, or_existing=False)
    assert (await database.read(sandboxes.get, ONE, sandbox.id)).id == sandbox.id
    assert (await promised).created


def test_store_functions_take_the_project_first_or_say_so() -> None:
    seen = 0
    for path in sorted(STORE.glob("*.py")):
        for function in ast.parse(path.read_text()).body:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            names = [argument.arg for argument in function.args.args]
            if "connection" not in names or path.name in {"db.py", "upgrade.py"}:
                continue
            seen += 1
            assert names[0] == "connection", (path.name, function.name)
            if function.name.endswith("_any_project"):
                assert "project_id" not in names, (path.name, function.name)
            else:
                assert names[1] == "project_id", (path.name, function.name)
    assert seen > 20


async def test_rows_come_back_as_they_went_in(database: Database) -> None:
    sandbox = await put(database, name="a", labels={"k": "v"}, spec={"x": [1]}, timeout_seconds=5, one_shot=True)
    found = await database.read(sandboxes.get, ONE, sandbox.id)
    assert {**found.__dict__} == {**sandbox.__dict__}


async def test_another_project_sees_nothing(database: Database) -> None:
    sandbox = await put(database, name="a")
    assert await database.read(sandboxes.find, TWO, sandbox.id) is None
    assert await database.read(sandboxes.find_named, TWO, "a") is None
    with pytest.raises(SandboxNotFoundError):
        await database.write(sandboxes.ask_stop, TWO, sandbox.id, now_us=1, match=None)
    with pytest.raises(SandboxNotFoundError):
        await database.write(sandboxes.change, TWO, sandbox.id, generation=1, changes={"name": "b"}, now_us=1)
    listed = await database.read(sandboxes.list_page, TWO, NO_FILTER, after=None, descending=True, limit=9)
    assert listed == []


async def test_a_group_survives_the_failure_of_one_of_its_units(database: Database) -> None:
    await put(database, name="taken")
    work = [put(database, name="taken" if number % 10 == 0 else None) for number in range(60)]
    results = await asyncio.gather(*work, return_exceptions=True)
    assert sum(isinstance(result, NameTakenError) for result in results) == 6
    assert len(await database.read(sandboxes.list_page, ONE, NO_FILTER, after=None, descending=True, limit=99)) == 55


async def test_a_unit_that_fails_leaves_nothing(database: Database) -> None:
    sandbox = a_sandbox()

    def half(connection: Connection) -> None:
        sandboxes.insert_new(connection, ONE, sandbox, or_existing=False)
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(half)
    assert await database.read(sandboxes.find, ONE, sandbox.id) is None


async def test_the_database_keeps_what_the_code_promises(database: Database) -> None:
    sandbox = await put(database)
    for change in ("state = 'odd'", "state = 'stopped'", "state = 'lost'", "generation = 0", "desired_state = 'odd'"):
        with pytest.raises(IntegrityError), database.engine.begin() as connection:
            connection.execute(text(f"UPDATE sandboxes SET {change} WHERE id = '{sandbox.id}'"))  # noqa: S608 - ours


async def test_trouble_of_the_engine_is_store_unavailable(database: Database) -> None:
    def broken(connection: Connection) -> None:
        connection.execute(text("SELECT * FROM no_such_table"))

    for call in (database.write, database.read):
        with pytest.raises(ProblemError) as caught:
            await call(broken)
        assert caught.value.code == "store_unavailable"


async def test_after_the_close_writes_are_refused(database: Database) -> None:
    await database.close()
    with pytest.raises(ProblemError) as caught:
        await put(database)
    assert caught.value.code == "shutting_down"


@pytest.mark.parametrize("source", list(SandboxState))
async def test_reports_move_rows_along_the_table_only(database: Database, source: SandboxState) -> None:
    ended = 1 if source in TERMINAL else None
    lost = 1 if source == SandboxState.LOST else None
    for target in SandboxState:
        sandbox = await put(database, state=source.value, ended_at=ended, lost_at=lost)
        [applied] = await database.write(sandboxes.apply_reports_any_project, NODE, [said(sandbox, target)], 5)
        now = await database.read(sandboxes.get, ONE, sandbox.id)
        possible = is_legal(source, target) and target not in {SandboxState.PENDING, SandboxState.LOST}
        assert now.state == (target if possible and ended is None else source)
        if ended is not None:
            assert applied.verdict == ("ended" if target in TERMINAL else "bury")
        elif possible and target in TERMINAL:
            assert applied.verdict == "ended"


async def test_an_ending_is_written_once(database: Database) -> None:
    sandbox = await put(database, state="running")
    first = said(sandbox, SandboxState.FAILED, reason=SandboxReason.OUT_OF_MEMORY, message="m")
    second = said(sandbox, SandboxState.STOPPED, reason=SandboxReason.REQUESTED)
    for report in (first, second):
        await database.write(sandboxes.apply_reports_any_project, NODE, [report], 7)
    await database.write(
        sandboxes.end_any_project,
        sandbox.id,
        state=SandboxState.FAILED,
        reason=SandboxReason.NODE_LOST,
        message=None,
        now_us=9,
    )
    row = await database.read(sandboxes.get, ONE, sandbox.id)
    assert (row.state, row.reason, row.message, row.ended_at) == ("failed", "out_of_memory", "m", 7)


async def test_the_intent_to_stop_outlives_everything(database: Database) -> None:
    sandbox = await put(database, state="running")
    asked = await database.write(sandboxes.ask_stop, ONE, sandbox.id, now_us=3, match=frozenset({1}))
    assert (asked.state, asked.desired_state, asked.generation) == ("stopping", "stopped", 2)
    with pytest.raises(ProblemError):
        await database.write(sandboxes.ask_stop, ONE, sandbox.id, now_us=3, match=frozenset({1}))
    again = await database.write(sandboxes.ask_stop, ONE, sandbox.id, now_us=4, match=None)
    assert again.generation == 2
    await database.write(sandboxes.apply_reports_any_project, NODE, [said(sandbox, SandboxState.RUNNING)], 5)
    assert (await database.read(sandboxes.get, ONE, sandbox.id)).state == "stopping"
    assert len(await database.read(sandboxes.unstopped_any_project, asked_before_us=100, limit=5)) == 1


async def test_lost_and_buried(database: Database) -> None:
    running, ended = await put(database, state="running"), await put(database, state="stopped", ended_at=1)
    assert await database.write(sandboxes.lose_any_project, NODE, 10) == [running.id]
    assert await database.write(sandboxes.bury_lost_any_project, lost_before_us=9, now_us=20) == []
    assert await database.write(sandboxes.bury_lost_any_project, lost_before_us=10, now_us=20) == [running.id]
    assert (await database.read(sandboxes.get, ONE, running.id)).reason == "node_lost"
    assert (await database.read(sandboxes.get, ONE, ended.id)).state == "stopped"


async def test_keys_are_claimed_once(database: Database) -> None:
    key = Key(value="k", fingerprint=b"f", operation="create")

    async def claim(name: str = "k", fingerprint: bytes = b"f", incarnation: str = "one", now_us: int = 1) -> str:
        asked = Key(value=name, fingerprint=fingerprint, operation="create")
        claimed = await database.write(
            idempotency.claim, ONE, asked, resource_id="r", incarnation=incarnation, now_us=now_us
        )
        return claimed.outcome + ("*" if claimed.abandoned else "")

    assert await asyncio.gather(*(claim() for _ in range(5))) == ["fresh", *["in_flight"] * 4]
    assert await claim(fingerprint=b"g") == "mismatch"
    assert await claim(incarnation="two") == "done*"
    await database.write(idempotency.finish, ONE, key, status=201)
    assert await claim() == "done"
    assert await claim(now_us=1 + idempotency.KEPT_US) == "fresh"
    await database.write(idempotency.release, ONE, key)
    assert await claim() == "fresh"
    await database.write(idempotency.purge_any_project, now_us=2 + idempotency.KEPT_US)
    assert await claim() == "fresh"


async def test_records_are_purged(database: Database) -> None:
    old = await put(database, state="stopped", ended_at=1)
    new = await put(database, state="stopped", ended_at=100)
    assert await database.write(sandboxes.purge_any_project, ended_before_us=50, limit=10) == 1
    assert await database.read(sandboxes.find, ONE, old.id) is None
    assert await database.read(sandboxes.find, ONE, new.id) is not None


def test_records_have_the_columns_of_their_table() -> None:
    assert set(Sandbox.model_fields) == set(SANDBOXES.c.keys())
