"""What is known of each image of a node: one small file beside the image's own."""

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sandboxd.contract.ids import image_id_from_digest
from sandboxd.contract.messages import NodeImage
from sandboxd.images.base import ImageConfig, Origin
from sandboxd.images.erofs import Sum
from sandboxd.packs.keys import PUBLIC, ManifestName


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one image."""

    sum: Sum
    names: tuple[str, ...]
    config: ImageConfig
    origins: tuple[Origin, ...] = ()
    """Where it came from, the latest last; empty for trees."""
    stored: tuple[ManifestName, ...] = ()
    """Where the store of packs has it, one for each domain; with none, its file here is all there is of it."""

    owed: tuple[str, ...] = ()
    """Domains of the store that it has still to be put into."""

    @property
    def id(self) -> str:
        return image_id_from_digest(self.sum.digest)

    @property
    def hex(self) -> str:
        return self.sum.digest.removeprefix("sha256:")

    def is_of(self, domain: str) -> bool:
        """Tell whether somebody of that domain may know that it is here."""
        domains = {name.domain for name in self.stored} | set(self.owed)
        return not domains or not domains.isdisjoint({PUBLIC, domain})

    def report(self) -> NodeImage:
        return NodeImage(id=self.id, digest=self.sum.digest, names=list(self.names), size_bytes=self.sum.size_bytes)


def take_names(directory: Path, record: Record, names: Sequence[str]) -> None:
    left = tuple(name for name in record.names if name not in names)
    if left != record.names:
        store_record(directory, replace(record, names=left))


def read_all(directory: Path) -> dict[str, Record]:
    """Read every record that has a file; one that cannot be read is no image."""
    records: dict[str, Record] = {}
    for path in sorted(directory.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = _parse(json.loads(path.read_text()))
            if record.hex == path.stem and (record.stored or path.with_suffix(".erofs").exists()):
                records[record.id] = record
    return records


def _parse(document: dict[str, Any]) -> Record:
    return Record(
        sum=Sum(
            digest=str(document["digest"]),
            size_bytes=int(document["size_bytes"]),
            superblock=str(document["superblock"]),
        ),
        names=tuple(str(name) for name in document["names"]),
        config=config_from_json(document["config"]),
        origins=tuple(_origin(row) for row in document.get("origins") or ()),
        stored=tuple(ManifestName(*row) for row in document.get("stored") or ()),
        owed=tuple(str(domain) for domain in document.get("owed") or ()),
    )


def _origin(row: dict[str, Any]) -> Origin:
    return Origin(**{name: str(row[name]) for name in ("kind", "reference", "digest", "platform", "at")})


def config_from_json(document: dict[str, Any]) -> ImageConfig:
    """Read defaults of an image from JSON as it is written beside one."""
    env: dict[str, Any] = document.get("env") or {}
    labels: dict[str, Any] = document.get("labels") or {}
    return ImageConfig(
        env={name: str(value) for name, value in env.items()},
        user=document.get("user") or None,
        cwd=document.get("cwd") or None,
        entrypoint=tuple(str(word) for word in document.get("entrypoint") or ()),
        cmd=tuple(str(word) for word in document.get("cmd") or ()),
        labels={name: str(value) for name, value in labels.items()},
        ports=tuple(str(port) for port in document.get("ports") or ()),
    )


def store_record(directory: Path, record: Record) -> None:
    document = {
        "digest": record.sum.digest,
        "size_bytes": record.sum.size_bytes,
        "superblock": record.sum.superblock,
        "names": list(record.names),
        "config": asdict(record.config),
        "origins": [asdict(origin) for origin in record.origins],
        "owed": list(record.owed),
        "stored": [[name.domain, name.image, name.hex] for name in record.stored],
    }
    target = directory / f"{record.hex}.json"
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".", delete=False) as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(target)
