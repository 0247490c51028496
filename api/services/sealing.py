"""Putting everything that is sealed under the newest key: what makes a new key the only one that is needed."""

import structlog

from api.services import authorities, secrets
from api.services.vault import UnreadableError, Vault
from api.store import secrets as store
from api.store.db import Connection

_log = structlog.get_logger()


def seal_again(connection: Connection, vault: Vault) -> None:
    """Seal anew what an older key has sealed. What cannot be opened stays as it is, and is counted in the log."""
    failed = secrets.seal_again(vault, connection)
    for known in store.authorities_sealed_otherwise_any_project(connection, vault.head):
        try:
            store.seal_authority_again_any_project(connection, known, authorities.seal_key(vault, known))
        except UnreadableError:
            failed += 1
    if failed:
        _log.error("secrets cannot be opened: the key that sealed them is not here", count=failed)
