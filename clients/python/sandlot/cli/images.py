"""image pull, build, ls, inspect, rm, tag, log: the images of a project."""

import sys
from collections.abc import Generator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sandlot._async.client import AsyncClient
from sandlot._async.images import UploadWatcher, Watcher
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.images import Image, ImageInfo

app = typer.Typer(no_args_is_help=True, help="Images of your project.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="IMAGE", help="Its id, or a name of it.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", "-t", metavar="NAME[:TAG]", help="A name to give it.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="[registry/]repository[:tag][@digest]")],
    *,
    tag: Tags = None,
    platform: Annotated[str | None, typer.Option("--platform", help="os/architecture; default: linux/amd64.")] = None,
    quiet: Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Fetch an image from a registry into your project, and print its id."""
    _make(Image.from_registry(reference, platform=platform), reference, tag or [], quiet=quiet, as_json=as_json)


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="A tar: an OCI layout, a docker archive or a root file system.")],
    *,
    form: Annotated[str, typer.Option("--format", help="oci, docker or rootfs.")] = "oci",
    tag: Tags = None,
    quiet: Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Upload a file and make an image of it; print its id. After a break the same goes on."""
    _make(Image.from_archive(file, format=form), file.name, tag or [], quiet=quiet, as_json=as_json)


@app.command()
def build(  # noqa: PLR0913 - one option for each thing a build is told
    context: Annotated[Path, typer.Argument(help="The directory whose files the build may copy.")],
    *,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Default: Dockerfile in the context.")] = None,
    tag: Tags = None,
    build_arg: Annotated[
        list[str] | None, typer.Option("--build-arg", metavar="NAME=VALUE", help="The value of an ARG.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="The stage to build; default: the last.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step again.")] = False,
    egress: Annotated[str | None, typer.Option("--egress", help="What steps may reach: open or blocked.")] = None,
    quiet: Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Build an image from a Dockerfile, show what its steps say, and print its id."""
    given = dict(options.pair(text, "--build-arg") for text in build_arg or [])
    image = Image.from_dockerfile(file or context / "Dockerfile", context=context, build_args=given, target=target)
    image = image.with_build(no_cache=no_cache or None, egress=egress)

    async def work(client: AsyncClient) -> ImageInfo:
        with _shown(show.printable(str(context)), quiet=quiet) as (uploaded, _):
            return await client.images.make(
                image, tags=tag or [], uploaded=uploaded, said=None if quiet else _print_aside
            )

    info = do(work, as_json=as_json)
    show.print_json(info.raw) if as_json else show.print_line(info.id)


def _print_aside(line: dict[str, Any]) -> None:
    """Print a line of the log where it is not in the way of the answer."""
    if line.get("kind") != "exit":
        sys.stderr.write(_text(line) + "\n")
        sys.stderr.flush()


def _make(image: Image, what: str, tags: Sequence[str], *, quiet: bool, as_json: bool) -> None:
    async def work(client: AsyncClient) -> ImageInfo:
        with _shown(show.printable(what), quiet=quiet) as (uploaded, progress):
            return await client.images.make(image, tags=tags, progress=progress, uploaded=uploaded)

    info = do(work, as_json=as_json)
    show.print_json(info.raw) if as_json else show.print_line(info.id)


@app.command()
def ls(
    *,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only those in this state.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only the one of this name.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the images you may start from."""

    async def work(client: AsyncClient) -> list[ImageInfo]:
        return [info async for info in client.images.list(state=state or [], tag=tag)]

    items = do(work, as_json=as_json)
    if as_json:
        show.print_json([info.raw for info in items])
        return
    shown = show.table("ID", "STATE", "NAMES", "REFERENCE", "SIZE")
    for info in items:
        cells = (info.id, info.state, ", ".join(info.tags), info.reference or "", show.size(info.size_bytes))
        shown.add_row(*(escape(show.printable(cell)) for cell in cells))
    show.console().print(shown)


@app.command()
def inspect(image: Name) -> None:
    """Print everything known of an image, as JSON."""
    show.print_json(do(lambda client: client.images.find(image), as_json=True).raw, indent=2)


@app.command()
def rm(images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Ids, or names.")]) -> None:
    """Remove images and their names; one that is being made is given up. Sandboxes on them live on.

    By a name of several, only that name goes.
    """

    async def work(client: AsyncClient) -> None:
        for image in images:
            info = await client.images.find(image)
            name = image if ":" in image else f"{image}:latest"
            if name in info.tags and len(info.tags) > 1:
                await client.images.untag(name)
                show.print_line(name)
            else:
                await client.images.delete(info.id)
                show.print_line(info.id)

    do(work)


@app.command()
def tag(
    image: Name,
    name: Annotated[str, typer.Argument(metavar="NAME[:TAG]", help="What to call it.")],
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Take the name away instead.")] = False,
) -> None:
    """Give an image a name, or take it away. Sandboxes stay on what they were started from."""

    async def work(client: AsyncClient) -> None:
        if remove:
            await client.images.untag(name)
        else:
            await client.images.tag((await client.images.find(image)).id, name)

    do(work)


@app.command()
def log(
    image: Name,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it is ready or has failed.")] = False,
    as_json: options.Json = False,
) -> None:
    """Print what was said while an image was made."""

    async def work(client: AsyncClient) -> None:
        info = await client.images.find(image)
        async with aclosing(client.images.log(info.id, follow=follow)) as lines:
            async for line in lines:
                show.print_json(line) if as_json else _print(line)

    do(work, as_json=as_json)


def _print(line: dict[str, Any]) -> None:
    show.print_line(_text(line))


def _text(line: dict[str, Any]) -> str:
    text = str(line.get("text") or "")
    if line.get("kind") == "exit":
        text = f"{line.get('state')}: {text}" if text else str(line.get("state"))
    elif line.get("kind") == "lost":
        text = f"[… {line.get('lost_bytes')} bytes were too much for the log …]"
    return show.printable(text)


@contextmanager
def _shown(what: str, *, quiet: bool) -> Generator[tuple[UploadWatcher | None, Watcher | None], None, None]:
    """Show how far it came, where somebody looks."""
    if quiet or not sys.stderr.isatty():
        yield None, None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=show.console_for_people(), transient=True) as progress:
        task = progress.add_task(escape(what), total=None)

        def uploaded(done: int, total: int | None) -> None:
            progress.update(task, description=escape(f"upload {what}"), completed=done, total=total)

        def told(info: ImageInfo) -> None:
            progress.update(
                task,
                description=escape(f"{info.state} {what}"),
                completed=info.done_bytes or 0,
                total=info.total_bytes,
            )

        yield uploaded, told
