"""`sandlotd image`: what an operator does with the images of a node."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.config import LauncherConfig
from infra.launcher import account
from infra.launcher.account import LauncherError
from infra.launcher.image_collection import collect
from infra.launcher.image_store import Sizes, fetch_image, keep_image, stored_sizes
from infra.launcher.images import find_image, import_file, remove_image
from infra.launcher.pull import Wanted, pull_image
from sandboxd.contract.messages import NodeImage
from sandboxd.images.store import Record

app = typer.Typer(no_args_is_help=True, help="Images of this node.")

Platform = Annotated[str, typer.Option(help=r"os/architecture\[/variant]; default: this machine's.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, one object a line.")]


@app.command("pull")
def image_pull(
    reference: Annotated[str, typer.Argument(help="Such as python:3.12, or host:5000/team/app@sha256:…")],
    name: Annotated[str | None, typer.Option(help="NAME:TAG that sandboxes ask for; default: the reference.")] = None,
    insecure: Annotated[bool, typer.Option(help="Speak plain HTTP; the registry may be at a private address.")] = False,
    username: Annotated[str | None, typer.Option(help="For the registry, this once.")] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read it from standard input.")] = False,
    platform: Platform = "",
) -> None:
    """Fetch an image from a registry; the node knows it at once. What was fetched before a break is kept."""
    if (username is None) == password_stdin:
        raise LauncherError(
            "a name and a password belong together", "give --username NAME --password-stdin, or neither"
        )
    password = sys.stdin.readline(65536).rstrip("\r\n") if password_stdin else None
    config = _prepared()
    wanted = Wanted(reference, name, platform, insecure=insecure, username=username, password=password)
    _say(asyncio.run(pull_image(config, wanted)))


@app.command("import")
def image_import(
    source: Annotated[
        Path,
        typer.Argument(help="A root file system (directory or tar), an OCI layout or a docker archive.", exists=True),
    ],
    name: Annotated[str | None, typer.Argument(help="The name sandboxes ask for; archives may bring one.")] = None,
    user: Annotated[str | None, typer.Option(help="Default user: a name or uid[:gid]. Root file systems only.")] = None,
    cwd: Annotated[str | None, typer.Option(help="Default working directory. Root file systems only.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=value, repeatable. Root file systems only.")] = None,
    ref: Annotated[str | None, typer.Option(help="Which image of a layout or archive, if it holds several.")] = None,
    platform: Platform = "",
) -> None:
    """Make an image of a file or directory; the node knows it at once."""
    config = _prepared()
    _say(
        asyncio.run(
            import_file(config, source, name, user=user, cwd=cwd, env=env or [], ref=ref, platform=platform),
        )
    )


@app.command("ls")
def image_ls(as_json: AsJson = False) -> None:
    """List the images of this node."""
    records, stored = asyncio.run(stored_sizes(LauncherConfig()))
    for record in records:
        image, sizes = record.report(), stored.get(record.sum.digest)
        if as_json:
            print(json.dumps(_described(record, sizes)))
        else:
            source = record.origins[-1].reference if record.origins else "-"
            taken = "-" if sizes is None else f"{sizes.shared >> 20}+{sizes.unique >> 20} MiB stored (shared+own)"
            print(f"{image.id}  {_names(image)}  {image.size_bytes >> 20} MiB  {taken}  {image.digest}  {source}")


@app.command("inspect")
def image_inspect(image: Annotated[str, typer.Argument(help="A name, id or digest.")]) -> None:
    """Print everything known of an image, as JSON."""
    record = asyncio.run(find_image(LauncherConfig(), image))
    _, stored = asyncio.run(stored_sizes(LauncherConfig()))
    described = _described(record, stored.get(record.sum.digest))
    print(json.dumps(described | {"config": asdict(record.config)}, indent=2))


@app.command("rm")
def image_rm(image: Annotated[str, typer.Argument(help="A name, id or digest.")]) -> None:
    """Remove an image no sandbox uses. By a name of several, only that name."""
    account.require_root()
    print(asyncio.run(remove_image(LauncherConfig(), image)))


@app.command("keep")
def image_keep(image: Annotated[str, typer.Argument(help="A name, id or digest.")]) -> None:
    """Put an image into the store that is only on this node so far, such as `base`."""
    config = _prepared()
    record = asyncio.run(find_image(config, image))
    asyncio.run(keep_image(config, record))
    print(f"{record.id} is in the store")


@app.command("fetch")
def image_fetch(
    digest: Annotated[str, typer.Argument(help="sha256:…, as `image ls` prints it on a node that has the image.")],
    name: Annotated[str, typer.Argument(help="The name sandboxes ask for.")],
) -> None:
    """Know an image of the store on this node; its bytes come with the first sandbox."""
    _say(asyncio.run(fetch_image(_prepared(), digest, [name])))


@app.command("gc")
def image_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")] = False,
    keep: Annotated[list[str] | None, typer.Option(help="Digest of an image that is needed, repeatable.")] = None,
    grace_hours: Annotated[float, typer.Option(min=0, help="Between condemning and deleting.")] = 72,
) -> None:
    """Delete from the store what no node, no tag, no sandbox and no import needs, and has not needed for a time.

    Where the api is on this box, images of this node go first that have no name and are no project's any more.
    """
    done = asyncio.run(collect(_prepared(), keep or [], grace_hours=grace_hours, dry_run=dry_run))
    plan = done.plan
    for word, names in (("delete", plan.delete), ("condemn", plan.condemn), ("spare", plan.spare)):
        did = f"would {word}" if dry_run else word
        print(f"{did}  {len(names)} objects  {plan.bytes_of(names) >> 20} MiB")
    for digest, taken in sorted(done.sizes.items()):
        print(f"  {digest}  {taken.shared >> 20}+{taken.unique >> 20} MiB stored (shared+own)")
    gone, did = done.forgotten, "would forget" if dry_run else "forget"
    print(f"{did}  {len(gone.records)} images of this node  {gone.size_bytes >> 20} MiB")


def _prepared() -> LauncherConfig:
    config = LauncherConfig()
    account.require_root()
    account.ensure_directories(config, account.ensure_account(config.api_user))
    return config


def _say(image: NodeImage) -> None:
    print(f"{image.id}  {_names(image)}  {image.size_bytes >> 20} MiB")


def _names(image: NodeImage) -> str:
    return ",".join(image.names) or "-"


def _described(record: Record, sizes: Sizes | None) -> dict[str, Any]:
    return record.report().model_dump(mode="json") | {
        "origins": [asdict(origin) for origin in record.origins],
        "shared_bytes": None if sizes is None else sizes.shared,
        "unique_bytes": None if sizes is None else sizes.unique,
    }
