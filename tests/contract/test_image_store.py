"""The store's promises about images, on every engine it is given."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from api.store import identity, images, sandboxes
from api.store.db import Database
from api.store.image_roots import roots_any_project
from api.store.image_tables import IMAGES, TAGS, UPLOADS, Image, Tag, Upload
from api.store.images import ImageFilter, ImageQuotas
from api.store.migrate import migrate
from api.store.tables import Project, Sandbox
from sandboxd.contract.ids import new_id
from sandboxd.contract.problems import ProblemError

URLS = ["sqlite", *filter(None, [os.environ.get("SANDLOT_TEST_DATABASE_URL")])]
PARENT, CHILD, OTHER = "prj" + "p" * 20, "prj" + "c" * 20, "prj" + "o" * 20


@pytest.fixture(name="database", params=URLS)
async def _database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Database]:
    url: str = request.param
    opened = Database(f"sqlite:///{tmp_path / 'api.db'}" if url == "sqlite" else url)
    migrate(opened.engine)
    opened.open()
    for project, parent in ((PARENT, "x"), (CHILD, PARENT), (OTHER, "x")):
        record = Project(id=project, parent_id=parent, name="p", created_at=0)
        await opened.write(identity.insert_project_any_project, record)
    yield opened
    await opened.close()


async def put(database: Database, project: str = PARENT, **changes: Any) -> Image:
    write = changes.pop("write", True)
    values: dict[str, Any] = {
        "id": new_id("img", os.urandom),
        "project_id": project,
        "key_id": "key",
        "node_id": "nod",
        "state": "ready",
        "kind": "registry",
        "source": {"reference": "r"},
        "content_id": "img" + "z" * 20,
        "digest": "sha256:0",
        "created_at": 5,
        "updated_at": 5,
        "ready_at": 5,
        **changes,
    }
    image = Image(**values)
    if write:
        await database.write(images.insert_new, project, image)
    return image


SANDBOX: dict[str, Any] = {
    "key_id": "key",
    "state": "running",
    "desired_state": "running",
    "node_id": "nod",
    "egress_mode": "open",
    "incarnation": "one",
    "start_deadline_at": 0,
    "created_at": 1,
    "updated_at": 1,
}
PENDING: dict[str, Any] = {"state": "pending", "content_id": None, "ready_at": None, "digest": None}


async def test_rows_come_back_as_they_went_in(database: Database) -> None:
    image = await put(
        database, labels={"a": "b"}, overrides={"env": {"A": "1"}}, steps=[{"index": 0}], size_bytes=1 << 40
    )
    found = await database.read(images.get_own, PARENT, image.id)
    assert {**found.__dict__} == {**image.__dict__}


async def test_who_sees_what(database: Database) -> None:
    shown = {kind: await put(database, visibility=kind) for kind in ("project", "tree", "public")}
    seen = {PARENT: {"project", "tree", "public"}, CHILD: {"tree", "public"}, OTHER: {"public"}}
    for project, kinds in seen.items():
        for kind, image in shown.items():
            found = await database.read(images.find_visible, project, image.id)
            assert (found is not None) == (kind in kinds), (project, kind)
        listed = await database.read(images.list_page, project, ImageFilter(), after=None, descending=True, limit=9)
        assert {row.visibility for row in listed} == kinds
    own = await put(database, CHILD, visibility="tree")
    assert await database.read(images.find_visible, PARENT, own.id) is None
    for project in (CHILD, OTHER):
        for work in (images.get_own, images.remove):
            with pytest.raises(ProblemError, match="image_not_found"):
                await database.write(work, project, shown["public"].id)


async def test_names_are_found_nearest_first_and_only_what_may_be_seen(database: Database) -> None:
    tree, hidden, own = await put(database, visibility="tree"), await put(database), await put(database, CHILD)
    await database.write(images.set_tag, PARENT, "app", "1", tree.id, now_us=1)
    await database.write(images.set_tag, PARENT, "app", "2", hidden.id, now_us=1)

    async def found(project: str, tag: str) -> str | None:
        image = await database.read(images.find_tagged, project, "app", tag)
        return None if image is None else image.id

    assert await found(CHILD, "1") == tree.id
    assert await found(CHILD, "2") is None
    assert await found(PARENT, "2") == hidden.id
    assert await found(OTHER, "1") is None
    await database.write(images.set_tag, CHILD, "app", "1", own.id, now_us=2)
    assert await found(CHILD, "1") == own.id
    assert await found(PARENT, "1") == tree.id
    with pytest.raises(ProblemError, match="image_not_found"):
        await database.write(images.set_tag, CHILD, "app", "3", hidden.id, now_us=1)
    await database.write(images.remove, PARENT, tree.id)
    assert await found(PARENT, "1") is None


async def test_tags_move_and_go(database: Database) -> None:
    one, two = await put(database), await put(database)
    assert (await database.write(images.set_tag, PARENT, "a", "1", one.id, now_us=1))[1]
    moved, is_new = await database.write(images.set_tag, PARENT, "a", "1", two.id, now_us=2)
    assert (moved.image_id, moved.created_at, moved.updated_at, is_new) == (two.id, 1, 2, False)
    assert await database.read(images.tags_of, PARENT, [one.id, two.id]) == {two.id: ["a:1"]}
    with pytest.raises(ProblemError, match="tag_not_found"):
        await database.write(images.remove_tag, OTHER, "a", "1")
    await database.write(images.remove_tag, PARENT, "a", "1")
    with pytest.raises(ProblemError, match="tag_not_found"):
        await database.read(images.get_tag, PARENT, "a", "1")


async def test_what_became_of_an_image_is_written_once(database: Database) -> None:
    image = await put(database, **PENDING)
    assert [row.id for row in await database.read(images.unsettled_any_project)] == [image.id]
    failed = {"state": "failed", "reason": "corrupt", "message": "m"}
    assert await database.write(images.note_any_project, image.id, failed) is not None
    assert await database.write(images.note_any_project, image.id, {"message": "other"}) is None
    assert (await database.read(images.get_own, PARENT, image.id)).message == "m"
    assert await database.read(images.unsettled_any_project) == []


async def test_the_same_source_is_found_again(database: Database) -> None:
    old = await put(database, reference="r", created_at=1)
    new = await put(database, reference="r", created_at=2)
    await put(database, reference="r", overrides={"env": {}}, created_at=3)
    await put(database, reference="r", source={"reference": "r", "platform": "linux/arm64"}, created_at=4)
    await put(database, OTHER, reference="r", created_at=5)
    same = await database.read(images.same_source, PARENT, kind="registry", reference="r", source={"reference": "r"})
    assert [image.id for image in same] == [new.id, old.id]


async def test_content_stays_while_anything_needs_it(database: Database) -> None:
    content = "img" + "y" * 20
    assert not await database.read(images.is_wanted_any_project, content)
    image = await put(database, content_id=content)
    assert await database.read(images.is_wanted_any_project, content)
    await database.write(images.remove, PARENT, image.id)
    sandbox = Sandbox(
        id=new_id("sbx", os.urandom),
        project_id=PARENT,
        key_id="key",
        state="running",
        desired_state="running",
        image_id=image.id,
        node_id="nod",
        spec={"image": {"id": content}},
        egress_mode="open",
        incarnation="one",
        start_deadline_at=0,
        created_at=1,
        updated_at=1,
    )
    await database.write(sandboxes.insert_new, PARENT, sandbox, or_existing=False)
    assert await database.read(images.is_wanted_any_project, content)
    await database.write(sandboxes.forget_any_project, sandbox.id)
    assert not await database.read(images.is_wanted_any_project, content)
    await put(database, **PENDING)
    assert await database.read(images.is_wanted_any_project, content)


async def test_the_database_keeps_what_the_code_promises(database: Database) -> None:
    image = await put(database)
    for change in ("state = 'odd'", "state = 'failed'", "content_id = NULL", "visibility = 'odd'", "kind = 'odd'"):
        with pytest.raises(IntegrityError), database.engine.begin() as connection:
            connection.execute(text(f"UPDATE images SET {change} WHERE id = '{image.id}'"))  # noqa: S608 - ours


async def test_uploads_are_a_projects(database: Database) -> None:
    for project in (PARENT, OTHER):
        assert (await database.write(images.use_upload, project, "a", f"nod{project}", 1)).node_id == f"nod{project}"
    assert (await database.write(images.use_upload, PARENT, "a", "elsewhere", 9)).node_id == f"nod{PARENT}"
    assert await database.write(images.purge_uploads_any_project, used_before_us=5) == 1
    assert await database.read(images.find_upload, OTHER, "a") is None
    assert await database.read(images.find_upload, PARENT, "a") is not None


async def test_a_project_has_so_many_on_their_way(database: Database) -> None:
    for _ in range(images.MOST_UNSETTLED):
        await put(database, **PENDING)
    with pytest.raises(ProblemError, match="quota_exceeded"):
        await put(database, **PENDING)
    await put(database, OTHER, **PENDING)


async def test_builds_of_a_project_are_bounded(database: Database) -> None:
    quotas = ImageQuotas(builds=2)

    async def begin(kind: str, project: str = PARENT) -> None:
        changes: dict[str, Any] = {**PENDING, "kind": kind}
        image = await put(database, project, write=False, **changes)
        await database.write(images.insert_new, project, image, quotas)

    for kind in ("build", "sandbox"):
        await begin(kind)
    with pytest.raises(ProblemError, match="builds of the project") as caught:
        await begin("build")
    assert (caught.value.code, caught.value.members["quota"]) == ("quota_exceeded", "builds")
    await begin("registry")
    await begin("build", OTHER)


async def test_what_images_of_a_project_have_is_bounded(database: Database) -> None:
    quotas = ImageQuotas(size_bytes=100)

    async def one_more(project: str = PARENT) -> None:
        await database.write(images.insert_new, project, await put(database, project, write=False, **PENDING), quotas)

    for _ in range(3):
        await put(database, size_bytes=60)
    await one_more()
    other = await put(database, size_bytes=40, content_id="img" + "y" * 20)
    with pytest.raises(ProblemError, match="quota_exceeded"):
        await one_more()
    await one_more(OTHER)
    await database.write(images.remove, PARENT, other.id)
    await one_more()


async def test_roots_are_what_somebody_has(database: Database) -> None:
    """Images that are listed, live sandboxes, and what builds are from that are not done."""
    kept = await put(database, digest="sha256:listed")
    await put(database, OTHER, digest="sha256:gone")
    of_sandbox = {"image": {"id": kept.content_id, "digest": "sha256:lived on", "reference": "r"}}
    live = Sandbox(**SANDBOX, id=new_id("sbx", os.urandom), project_id=OTHER, image_id=kept.id, spec=of_sandbox)
    await database.write(sandboxes.insert_new, OTHER, live, or_existing=False)
    roots = await database.read(roots_any_project)
    assert (set(roots.digests), roots.unsettled) == ({"sha256:listed", "sha256:gone", "sha256:lived on"}, False)
    gone = (await database.read(images.list_page, OTHER, ImageFilter(), after=None, descending=False, limit=9))[0]
    await database.write(images.remove, OTHER, gone.id)
    base = {"b": {"id": "i", "reference": "b", "digest": "sha256:built on"}}
    coming = dict[str, Any](PENDING, kind="build", source={"build": {}, "images": base})
    await put(database, **coming)
    roots = await database.read(roots_any_project)
    assert (set(roots.digests), roots.unsettled) == ({"sha256:listed", "sha256:lived on", "sha256:built on"}, True)
    await database.write(sandboxes.forget_any_project, live.id)
    assert "sha256:lived on" not in (await database.read(roots_any_project)).digests


async def test_failures_are_purged(database: Database) -> None:
    failed: dict[str, Any] = PENDING | {"state": "failed", "reason": "corrupt"}
    old, new = await put(database, PARENT, **failed), await put(database, PARENT, **failed | {"updated_at": 100})
    ready = await put(database)
    await database.write(images.set_tag, PARENT, "a", "1", old.id, now_us=1)
    assert await database.write(images.purge_failed_any_project, failed_before_us=50, limit=10) == 1
    assert await database.read(images.find_visible, PARENT, old.id) is None
    assert await database.read(images.list_tags, PARENT, after=None, limit=9) == []
    for image in (new, ready):
        assert await database.read(images.find_visible, PARENT, image.id) is not None


def test_records_have_the_columns_of_their_table() -> None:
    for record, table in ((Image, IMAGES), (Tag, TAGS), (Upload, UPLOADS)):
        assert set(record.model_fields) == set(table.c.keys())
