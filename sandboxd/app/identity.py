"""Who this node is: its id and its key, drawn once and kept."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.contract.ids import RandomBytes, is_id, new_id

_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The node's id, and the key its guests' tokens are made with."""

    node_id: str
    key: bytes = field(repr=False)


def read_identity(data_dir: Path, random_bytes: RandomBytes) -> Identity:
    """Read it, or draw it at the very first start. ValueError when a file is there but is none of ours."""
    key_path, id_path = data_dir / "node.key", data_dir / "node.json"
    if not key_path.exists():
        _write_once(key_path, random_bytes(_KEY_BYTES))
    if not id_path.exists():
        _write_once(id_path, json.dumps({"node_id": new_id("nod", random_bytes)}).encode())
    key = key_path.read_bytes()
    node_id = json.loads(id_path.read_bytes()).get("node_id", "")
    if len(key) != _KEY_BYTES or not is_id("nod", node_id):
        raise ValueError(f"{key_path} or {id_path} is damaged; without them no sandbox can be taken over")
    return Identity(node_id=node_id, key=key)


def _write_once(path: Path, content: bytes) -> None:
    """Write a private file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    aside.rename(path)
