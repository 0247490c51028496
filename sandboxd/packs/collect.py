"""What of a store nobody needs any more: found by what is needed, marked, and deleted only after a time of grace.

Roots are the images that somebody has: tags, as they are given; what nodes say they have; what is being written. A
manifest that is no root's, and a pack that no manifest names, is condemned; one that was condemned long enough and is
still not needed is deleted. `intents` says why no writer can lose what it builds on.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, cast

from sandboxd.packs.blobs import BlobError, BlobMissingError, Blobs
from sandboxd.packs.intents import Intent, live_intents
from sandboxd.packs.keys import (
    CONDEMNED,
    IMAGES,
    NODES,
    PACKS,
    ManifestName,
    PackName,
    parse_key,
    parse_tombstone,
    tombstone_of,
)
from sandboxd.packs.manifest import MOST_BYTES, Manifest, parse
from sandboxd.packs.pack import DamagedError

GRACE_SECONDS: Final = 72 * 3600
_TRUSTED_SECONDS: Final = 600
"""A look at a store is out of date after that: nothing is deleted by it any more."""
_ROOTS_LIMIT: Final = 64 * 1024 * 1024

Name = PackName | ManifestName


class StaleError(Exception):
    """The collection took too long between looking and deleting; do it again."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a look at the store came to."""

    delete: list[Name] = field(default_factory=list[Name])
    condemn: list[Name] = field(default_factory=list[Name])
    spare: list[Name] = field(default_factory=list[Name])
    """Condemned, and needed again."""
    sizes: dict[Name, int] = field(default_factory=dict[Name, int])
    looked: float = 0.0

    def bytes_of(self, names: Iterable[Name]) -> int:
        return sum(self.sizes.get(name, 0) for name in names)


@dataclass(slots=True)
class Collector:
    """Collects one store. Several may run; each is as safe as one."""

    blobs: Blobs
    grace_seconds: float = GRACE_SECONDS
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def look(self, tags: Iterable[str] = ()) -> Plan:
        """Decide what is needed; `tags` are digests of images that somebody named. The order of reading matters.

        BlobError; DamagedError when a manifest cannot be read: what it needs is not known then.
        """
        plan = Plan(looked=self.monotonic())
        condemned = {name: blob.modified for blob in self.blobs.list(CONDEMNED) if (name := parse_tombstone(blob.key))}
        intents = live_intents(self.blobs, self.now())
        roots = {tag.removeprefix("sha256:") for tag in tags} | self._kept_by_nodes()
        roots.update(*(intent.images for intent in intents))
        manifests, packs = self._content(plan)
        # A manifest that was put while the packs were listed may name one of them.
        self._judge_manifests(plan, manifests, roots, condemned)
        needed: set[PackName] = set()
        for name in manifests:
            # As long as it is there it may be needed again.
            needed.update(self._packs_of(name))
        self._judge_packs(plan, packs, needed, condemned, intents)
        return plan

    def carry_out(self, plan: Plan) -> None:
        """Do what was decided. BlobError, StaleError."""
        for name in plan.spare:
            self.blobs.delete(tombstone_of(name))
        for name in plan.condemn:
            self.blobs.put(tombstone_of(name), b"{}")
        # Manifests first: what is left of a collection that was cut off is whole.
        for name in sorted(plan.delete, key=lambda each: isinstance(each, PackName)):
            if self.monotonic() - plan.looked > _TRUSTED_SECONDS:
                raise StaleError("the collection was slow or slept; run it again")
            self.blobs.delete(name.key)
            self.blobs.delete(tombstone_of(name))

    def _kept_by_nodes(self) -> set[str]:
        kept: set[str] = set()
        for blob in self.blobs.list(NODES):
            try:
                kept.update(
                    str(image) for image in cast("list[object]", json.loads(self.blobs.get(blob.key, _ROOTS_LIMIT)))
                )
            except BlobMissingError:
                continue
            except (ValueError, TypeError) as error:
                raise BlobError(f"{blob.key} cannot be read, so that nobody knows what it needs") from error
        return kept

    def _content(self, plan: Plan) -> tuple[list[ManifestName], list[PackName]]:
        """List packs, then manifests: a pack is there before what names it."""
        packs: list[PackName] = []
        for blob in self.blobs.list(PACKS):
            if isinstance(name := parse_key(blob.key), PackName):
                packs.append(name)
                plan.sizes[name] = blob.size
        manifests: list[ManifestName] = []
        for blob in self.blobs.list(IMAGES):
            if isinstance(name := parse_key(blob.key), ManifestName):
                manifests.append(name)
                plan.sizes[name] = blob.size
        return manifests, packs

    def _judge_manifests(
        self, plan: Plan, names: Iterable[ManifestName], roots: set[str], condemned: dict[Name, float]
    ) -> None:
        for name in names:
            self._judge(plan, name, condemned, needed=name.image in roots, kept=False)

    def _judge_packs(
        self,
        plan: Plan,
        names: Iterable[PackName],
        needed: set[PackName],
        condemned: dict[Name, float],
        intents: list[Intent],
    ) -> None:
        for name in names:
            built_on = any(name not in intent.avoids for intent in intents)
            self._judge(plan, name, condemned, needed=name in needed, kept=built_on)
        gone = [name for name in condemned if name not in plan.sizes]
        plan.spare += gone

    def _judge(self, plan: Plan, name: Name, condemned: dict[Name, float], *, needed: bool, kept: bool) -> None:
        """Decide on one object; what is `kept` may be condemned, but not deleted now."""
        since = condemned.get(name)
        if needed:
            if since is not None:
                plan.spare.append(name)
        elif since is None:
            plan.condemn.append(name)
        elif self.now() - since >= self.grace_seconds and not kept:
            plan.delete.append(name)

    def _packs_of(self, name: ManifestName) -> Iterable[PackName]:
        try:
            return parse(self.blobs.get(name.key, MOST_BYTES), name).packs
        except BlobMissingError:
            return ()
        except DamagedError as error:
            raise DamagedError(f"{name.key} cannot be read, so that nobody knows what it needs: {error}") from error


def sizes(manifests: Iterable[Manifest]) -> dict[str, tuple[int, int]]:
    """Return for each image how many stored bytes it shares with others of these, and how many are its own alone."""
    users: dict[tuple[PackName, int], set[str]] = {}
    stored: dict[tuple[PackName, int], int] = {}
    totals: dict[str, tuple[int, int]] = {}
    for manifest in manifests:
        totals.setdefault(manifest.facts.image, (0, 0))
        frames = manifest.frames
        for each in range(len(frames)):
            key = manifest.packs[frames.packs[each]], frames.offsets[each]
            users.setdefault(key, set()).add(manifest.facts.image)
            stored[key] = frames.stored[each]
    for key, images in users.items():
        for image in images:
            shared, unique = totals[image]
            alone = len(images) == 1
            totals[image] = shared + (0 if alone else stored[key]), unique + (stored[key] if alone else 0)
    return totals
