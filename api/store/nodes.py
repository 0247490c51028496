"""Nodes that have reported: who they are and which epoch of commands they follow."""

from typing import Any

from sqlalchemy import Connection, insert, select, update

from api.store.tables import NODES, Node

_c = NODES.c


def all_any_project(connection: Connection) -> list[Node]:
    rows: Any = connection.execute(select(NODES))
    return [Node.model_construct(**dict(row._mapping)) for row in rows]  # noqa: SLF001 - the mapping's documented name


def save_any_project(connection: Connection, node: Node) -> None:
    """Insert the node or replace what was known of it."""
    values = dict(node.__dict__)
    if connection.execute(update(NODES).where(_c.id == node.id).values(**values)).rowcount == 0:
        connection.execute(insert(NODES), values)


def fence_any_project(connection: Connection, node_id: str, *, epoch: int) -> None:
    """Mark a node lost and raise its epoch: what it was told before is void."""
    connection.execute(update(NODES).where(_c.id == node_id).values(state="lost", epoch=epoch))


def ping_any_project(connection: Connection) -> bool:
    """Tell whether the database answers."""
    return connection.execute(select(1)).scalar() == 1
