"""What an image costs on the path of a create when it is there: finding and pinning it, among many others."""

import tempfile
import time
from pathlib import Path

from api.services import image_names
from api.services.identity import Caller
from api.services.image_names import Pinned
from api.services.platform import Platform as Api
from api.store import images as store
from api.store import nodes
from api.store.image_tables import Image
from api_stand import Stand, api
from fake_node import DIGEST, IMAGE
from harness import Platform
from raw_sandbox import RawBox
from report import Row, median, percentile
from sandboxd.contract.images import RegistrySource

IMAGES = 2000
ROUNDS = 400
REFERENCE = "registry.example.com/team/app:{}"


async def imageapi(platform: Platform, raw: RawBox) -> list[Row]:
    """Resolve names in an api of its own, with a database of its own."""
    del platform, raw
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        async with api(Path(directory)) as stand:
            caller = await _caller(stand)
            ids = await _fill(stand, caller)
            half = IMAGES // 2
            asked = {
                "by id": ids[half],
                "by a name of the project's": f"app-{half}",
                "by reference": REFERENCE.format(half),
                "the platform's own": "base",
            }
            bare = await _reads(stand.platform)
            return [await _measured(stand.platform, caller, what, text, bare) for what, text in asked.items()]


async def _caller(stand: Stand) -> Caller:
    key = stand.root.headers["Authorization"].removeprefix("Bearer ")
    sources = stand.platform.sources
    return await stand.platform.callers.authenticate(
        stand.platform.database, key, now_us=sources.now_us(), monotonic=sources.monotonic()
    )


async def _fill(stand: Stand, caller: Caller) -> list[str]:
    """Have many images, each with a name, all of the one content that the node has."""
    database = stand.platform.database
    made: list[str] = []
    for number in range(IMAGES):
        reference = REFERENCE.format(number)
        image = Image(
            id="img" + f"{number:020d}".translate(_LETTERS),
            project_id=caller.project_id,
            key_id=caller.key_id,
            node_id=stand.node.id,
            state="ready",
            kind="registry",
            source=RegistrySource(reference=reference).model_dump(mode="json", exclude={"password"}),
            reference=reference,
            content_id=IMAGE,
            digest=DIGEST,
            created_at=number,
            updated_at=number,
            ready_at=number,
        )
        await database.write(store.insert_new, caller.project_id, image)
        await database.write(store.set_tag, caller.project_id, f"app-{number}", "latest", image.id, now_us=number)
        made.append(image.id)
    return made


_LETTERS = str.maketrans("0123456789", "abcdefghij")


async def _reads(platform: Api) -> list[float]:
    samples: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await platform.database.read(nodes.ping_any_project)
        samples.append((time.perf_counter() - began) * 1000)
    return samples


async def _measured(platform: Api, caller: Caller, what: str, text: str, bare: list[float]) -> Row:
    samples: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = await image_names.resolve(platform, caller, text)
        samples.append((time.perf_counter() - began) * 1000)
        if not isinstance(found, Pinned):
            raise TypeError(text)
    name = f"a local image in a create, {what}, among {IMAGES}"
    beside = f"a bare read takes {median(bare):.2f} ms; ours at p95 {percentile(samples, 95):.2f} ms"
    return Row(name=name, unit="ms", value=median(samples), limit=2, note=beside)
