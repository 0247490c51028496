"""Images and the names projects gave them. What a project may see: its own, its ancestors' `tree`, and all `public`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, or_, select, update

from api.store.image_tables import IMAGES, TAGS, UPLOADS, Image, Tag, Upload
from api.store.tables import PROJECTS, SANDBOXES
from sandboxd.contract.images import ImageState
from sandboxd.contract.problems import ProblemError

_i = IMAGES.c
_t = TAGS.c
_u = UPLOADS.c
_UNSETTLED: Final = _i.state.in_(("pending", "importing", "building"))
_BUILDS: Final = ("build", "sandbox")
_DEEPEST: Final = 64
MOST_UNSETTLED: Final = 64
"""On their way at once, of one project: others want a turn too."""
_PARENT: Final = select(PROJECTS.c.parent_id).where(PROJECTS.c.id == bindparam("p_id"))
_GET: Final = select(IMAGES).where(_i.id == bindparam("p_id"))
_USED: Final = (
    update(IMAGES)
    .where(_i.id == bindparam("p_id"), or_(_i.last_used_at.is_(None), _i.last_used_at < bindparam("p_before")))
    .values(last_used_at=bindparam("p_now"))
)
_TAGGED: Final = (
    select(IMAGES, _t.project_id.label("tagged_by"))
    .join(TAGS, _t.image_id == _i.id)
    .where(
        _t.project_id.in_(bindparam("p_line", expanding=True)),
        _t.name == bindparam("p_name"),
        _t.tag == bindparam("p_tag"),
        or_(
            _i.project_id == bindparam("p_project"),
            _i.visibility == "public",
            and_(_i.visibility == "tree", _i.project_id.in_(bindparam("p_above", expanding=True))),
        ),
    )
)
"""Made once: it is on the way of every create, and making it costs more than running it."""


def image_not_found(image_id: str) -> ProblemError:
    return ProblemError("image_not_found", f"There is no image {image_id[:64]!r}.", hint="GET /v1/images.")


def _record(row: Row[Any]) -> Image:
    return Image.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name of the mapping


def lineage(connection: Connection, project_id: str) -> list[str]:
    """Return a project and its ancestors, nearest first."""
    line = [project_id]
    while len(line) < _DEEPEST:
        parent = connection.execute(_PARENT, {"p_id": line[-1]}).scalar()
        if parent is None or parent in line:
            break
        line.append(parent)
    return line


def _visible(line: Sequence[str]) -> Any:
    above = and_(_i.visibility == "tree", _i.project_id.in_(line[1:]))
    return or_(_i.project_id == line[0], _i.visibility == "public", above)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageQuotas:
    """What one project may have; 0: as much as there is."""

    builds: int = 0
    """Builds on their way at once."""
    size_bytes: int = 0
    """Of all its images, those with the same content once."""


def insert_new(connection: Connection, project_id: str, image: Image, quotas: ImageQuotas | None = None) -> None:
    """Add an image. Raises `quota_exceeded` when too many of the project's are on their way, or it has too much."""
    if image.state == ImageState.PENDING:
        _check_quotas(connection, project_id, image.kind, quotas or ImageQuotas())
        on_their_way = select(func.count()).select_from(IMAGES).where(_UNSETTLED, _i.project_id == project_id)
        if connection.execute(on_their_way).scalar_one() >= MOST_UNSETTLED:
            raise ProblemError(
                "quota_exceeded",
                f"{MOST_UNSETTLED} images of the project are being made.",
                hint="Wait until some of them are ready.",
                quota="unsettled_images",
                limit=MOST_UNSETTLED,
            )
    connection.execute(insert(IMAGES), {**image.__dict__, "project_id": project_id})


def _check_quotas(connection: Connection, project_id: str, kind: str, quotas: ImageQuotas) -> None:
    own = _i.project_id == project_id
    if quotas.builds and kind in _BUILDS:
        building = select(func.count()).select_from(IMAGES).where(own, _UNSETTLED, _i.kind.in_(_BUILDS))
        if connection.execute(building).scalar_one() >= quotas.builds:
            raise ProblemError(
                "quota_exceeded",
                f"{quotas.builds} builds of the project are on their way.",
                hint="Wait until one of them is done.",
                quota="builds",
                limit=quotas.builds,
            )
    if quotas.size_bytes:
        each = select(_i.content_id, func.max(_i.size_bytes).label("size")).where(own, _i.content_id.is_not(None))
        used = connection.execute(select(func.sum(each.group_by(_i.content_id).subquery().c.size))).scalar() or 0
        if used >= quotas.size_bytes:
            raise ProblemError(
                "quota_exceeded",
                f"The images of the project have {used >> 20} of {quotas.size_bytes >> 20} MiB.",
                hint="Delete images that are not needed any more.",
                quota="image_bytes",
                limit=quotas.size_bytes,
            )


def find_visible(connection: Connection, project_id: str, image_id: str) -> Image | None:
    """Return an image the project may see."""
    row = connection.execute(_GET, {"p_id": image_id}).first()
    if row is None:
        return None
    image = _record(row)
    if image.project_id == project_id or image.visibility == "public":
        return image
    may = image.visibility == "tree" and image.project_id in lineage(connection, project_id)
    return image if may else None


def get_own(connection: Connection, project_id: str, image_id: str) -> Image:
    """Raises `image_not_found`, for another project's too."""
    row = connection.execute(_GET, {"p_id": image_id}).first()
    if row is None or (image := _record(row)).project_id != project_id:
        raise image_not_found(image_id)
    return image


def get_any_project(connection: Connection, image_id: str) -> Image | None:
    row = connection.execute(_GET, {"p_id": image_id}).first()
    return None if row is None else _record(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFilter:
    """What a list must match."""

    states: tuple[str, ...] = ()
    visibility: str | None = None
    tag: tuple[str, str] | None = None


def list_page(
    connection: Connection,
    project_id: str,
    wanted: ImageFilter,
    *,
    after: tuple[int, str] | None,
    descending: bool,
    limit: int,
) -> list[Image]:
    """Return up to `limit` images the project may see, in order of (created_at, id), beyond the position `after`."""
    conditions: list[Any] = [_visible(lineage(connection, project_id))]
    if wanted.states:
        conditions.append(_i.state.in_(wanted.states))
    if wanted.visibility is not None:
        conditions.append(_i.visibility == wanted.visibility)
    if wanted.tag is not None:
        name, tag = wanted.tag
        tagged = select(_t.image_id).where(_t.project_id == project_id, _t.name == name, _t.tag == tag)
        conditions.append(_i.id.in_(tagged))
    if after is not None:
        at, last = after
        beyond = _i.created_at < at if descending else _i.created_at > at
        within = _i.id < last if descending else _i.id > last
        conditions.append(or_(beyond, and_(_i.created_at == at, within)))
    order = (_i.created_at.desc(), _i.id.desc()) if descending else (_i.created_at.asc(), _i.id.asc())
    return [_record(row) for row in connection.execute(select(IMAGES).where(*conditions).order_by(*order).limit(limit))]


def change(
    connection: Connection,
    project_id: str,
    image_id: str,
    *,
    match: frozenset[int] | None,
    changes: Mapping[str, Any],
    now_us: int,
) -> Image:
    """Write what a caller asked to change. Raises `image_not_found`, `generation_mismatch`."""
    image = get_own(connection, project_id, image_id)
    if match is not None and image.generation not in match:
        raise ProblemError(
            "generation_mismatch", f"Image {image_id} is at generation {image.generation}.", generation=image.generation
        )
    values = {**changes, "generation": image.generation + 1, "updated_at": now_us}
    connection.execute(update(IMAGES).where(_i.id == image_id).values(**values))
    return image.model_copy(update=values)


def note_any_project(connection: Connection, image_id: str, changes: Mapping[str, Any]) -> Image | None:
    """Write what became of an image that is not settled; None where it is, or is gone."""
    image = get_any_project(connection, image_id)
    if image is None or image.state in {"ready", "failed"}:
        return None
    connection.execute(update(IMAGES).where(_i.id == image_id).values(**changes))
    return image.model_copy(update=dict(changes))


def remove(connection: Connection, project_id: str, image_id: str) -> Image:
    """Remove an image and whatever is called by its name. Raises `image_not_found`."""
    image = get_own(connection, project_id, image_id)
    connection.execute(delete(TAGS).where(_t.image_id == image_id))
    connection.execute(delete(IMAGES).where(_i.id == image_id))
    return image


def unsettled_any_project(connection: Connection) -> list[Image]:
    return [_record(row) for row in connection.execute(select(IMAGES).where(_UNSETTLED))]


def purge_failed_any_project(connection: Connection, *, failed_before_us: int, limit: int) -> int:
    """Remove images that failed before a time, and what is called by their names."""
    old = select(_i.id).where(_i.state == "failed", _i.updated_at < failed_before_us).limit(limit)
    ids = list(connection.execute(old).scalars())
    connection.execute(delete(TAGS).where(_t.image_id.in_(ids)))
    return connection.execute(delete(IMAGES).where(_i.id.in_(ids))).rowcount


def same_source(
    connection: Connection, project_id: str, *, kind: str, reference: str | None, source: Mapping[str, Any]
) -> list[Image]:
    """Return the project's images of this source with no config of their own that have not failed, newest first."""
    statement = (
        select(IMAGES)
        .where(_i.project_id == project_id, _i.kind == kind, _i.reference == reference, _i.state != "failed")
        .order_by(_i.created_at.desc(), _i.id.desc())
        .limit(200)
    )
    images = [_record(row) for row in connection.execute(statement)]
    return [image for image in images if image.source == source and image.overrides is None]


def is_wanted_any_project(connection: Connection, content_id: str) -> bool:
    """Tell whether content must stay: an image has it, a live sandbox is on it, or what is being made may be it."""
    if connection.execute(select(_i.id).where(or_(_i.content_id == content_id, _UNSETTLED)).limit(1)).first():
        return True
    live = SANDBOXES.c.ended_at.is_(None)
    on_it = SANDBOXES.c.spec["image"]["id"].as_string() == content_id
    return connection.execute(select(SANDBOXES.c.id).where(live, on_it).limit(1)).first() is not None


def used(connection: Connection, project_id: str, image_id: str, now_us: int) -> None:  # noqa: ARG001 - visibility was checked
    """Remember that a sandbox starts from it; to the minute."""
    connection.execute(_USED, {"p_id": image_id, "p_before": now_us - 60_000_000, "p_now": now_us})


# Tags


def find_tagged(connection: Connection, project_id: str, name: str, tag: str) -> Image | None:
    """Return what a name stands for: the project's own, else that of its nearest ancestor that shows it."""
    line = lineage(connection, project_id)
    asked = {"p_line": line, "p_project": project_id, "p_above": line[1:], "p_name": name, "p_tag": tag}
    rows = list(connection.execute(_TAGGED, asked))
    if not rows:
        return None
    row = min(rows, key=lambda each: line.index(each.tagged_by))
    values = dict(row._mapping)  # noqa: SLF001 - the documented name of the mapping
    del values["tagged_by"]
    return Image.model_construct(**values)


def set_tag(
    connection: Connection, project_id: str, name: str, tag: str, image_id: str, *, now_us: int
) -> tuple[Tag, bool]:
    """Give an image the project may see a name; returns it, and whether the name is new. Raises `image_not_found`."""
    if find_visible(connection, project_id, image_id) is None:
        raise image_not_found(image_id)
    mine = and_(_t.project_id == project_id, _t.name == name, _t.tag == tag)
    row = connection.execute(select(TAGS).where(mine)).first()
    if row is not None:
        connection.execute(update(TAGS).where(mine).values(image_id=image_id, updated_at=now_us))
        known = Tag.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name of the mapping
        return known.model_copy(update={"image_id": image_id, "updated_at": now_us}), False
    made = Tag(project_id=project_id, name=name, tag=tag, image_id=image_id, created_at=now_us, updated_at=now_us)
    connection.execute(insert(TAGS), dict(made.__dict__))
    return made, True


def get_tag(connection: Connection, project_id: str, name: str, tag: str) -> Tag:
    """Raises `tag_not_found`."""
    row = connection.execute(select(TAGS).where(_t.project_id == project_id, _t.name == name, _t.tag == tag)).first()
    if row is None:
        raise _tag_not_found(name, tag)
    return Tag.model_construct(**dict(row._mapping))  # noqa: SLF001 - the documented name of the mapping


def remove_tag(connection: Connection, project_id: str, name: str, tag: str) -> None:
    """Raises `tag_not_found`."""
    done = connection.execute(delete(TAGS).where(_t.project_id == project_id, _t.name == name, _t.tag == tag))
    if not done.rowcount:
        raise _tag_not_found(name, tag)


def list_tags(connection: Connection, project_id: str, *, after: tuple[str, str] | None, limit: int) -> list[Tag]:
    """Return the project's tags in order of their names."""
    conditions: list[Any] = [_t.project_id == project_id]
    if after is not None:
        name, tag = after
        conditions.append(or_(_t.name > name, and_(_t.name == name, _t.tag > tag)))
    rows = connection.execute(select(TAGS).where(*conditions).order_by(_t.name, _t.tag).limit(limit))
    return [Tag.model_construct(**dict(row._mapping)) for row in rows]  # noqa: SLF001 - the same


def tags_of(connection: Connection, project_id: str, image_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the project's names of images."""
    found: dict[str, list[str]] = {}
    rows: Any = connection.execute(
        select(_t.image_id, _t.name, _t.tag)
        .where(_t.project_id == project_id, _t.image_id.in_(image_ids))
        .order_by(_t.name, _t.tag)
    )
    for row in rows:
        found.setdefault(row.image_id, []).append(f"{row.name}:{row.tag}")
    return found


def _tag_not_found(name: str, tag: str) -> ProblemError:
    return ProblemError("tag_not_found", f"There is no tag {f'{name}:{tag}'[:200]!r}.", hint="GET /v1/tags.")


# Uploads


def find_upload(connection: Connection, project_id: str, sha256: str) -> Upload | None:
    row = connection.execute(select(UPLOADS).where(_u.project_id == project_id, _u.sha256 == sha256)).first()
    return None if row is None else Upload.model_construct(**dict(row._mapping))  # noqa: SLF001 - the same


def use_upload(connection: Connection, project_id: str, sha256: str, node_id: str, now_us: int) -> Upload:
    """Remember on which node an upload lies, the first time, and that it was used."""
    known = find_upload(connection, project_id, sha256)
    if known is not None:
        connection.execute(
            update(UPLOADS).where(_u.project_id == project_id, _u.sha256 == sha256).values(used_at=now_us)
        )
        return known
    made = Upload(project_id=project_id, sha256=sha256, node_id=node_id, used_at=now_us)
    connection.execute(insert(UPLOADS), dict(made.__dict__))
    return made


def purge_uploads_any_project(connection: Connection, *, used_before_us: int) -> int:
    return connection.execute(delete(UPLOADS).where(_u.used_at < used_before_us)).rowcount
