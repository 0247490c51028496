"""A new key for the root project, for an operator on the machine whose key was lost or has become known."""

from api.config import Settings
from api.services import keys
from api.services.identity import ROOT_SCOPES, new_key_record, write_private
from api.store import identity as store
from api.store.db import Connection, make_engine
from sandboxd.contract.ids import RandomBytes, new_id


class NoProjectError(Exception):
    """The api has never been started here."""


def issue(settings: Settings, *, keep_old: bool, now_us: int, random_bytes: RandomBytes) -> int:
    """Put a new key into `root-key` and the database; returns how many older ones it revoked. NoProjectError.

    The file is written first: a crash in between leaves a file whose key the api's next start adopts.
    """
    engine = make_engine(settings.store_url)
    try:
        with engine.begin() as connection:
            project_id = store.root_any_project(connection)
            if project_id is None:
                raise NoProjectError
            key = keys.new_key(random_bytes)
            write_private(settings.private_dir / "root-key", keys.render("project", key).encode() + b"\n")
            return _put(
                connection, project_id, key, keep_old=keep_old, now_us=now_us, key_id=new_id("key", random_bytes)
            )
    finally:
        engine.dispose()


def _put(connection: Connection, project_id: str, key: bytes, *, keep_old: bool, now_us: int, key_id: str) -> int:
    revoked = 0 if keep_old else store.revoke_named(connection, project_id, "root", now_us)
    record = new_key_record(
        key, project_id=project_id, name="root", kind="project", scopes=ROOT_SCOPES, now_us=now_us, key_id=key_id
    )
    store.insert_key(connection, project_id, record)
    return revoked
