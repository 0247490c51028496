"""What passes between the node agent and the program that fetches one image for it. Lines of JSON, each way.

The program reads what strangers made and is not trusted afterwards: whatever it says is checked like any input.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from sandboxd.contract.images import ImageOverrides, ImageReason
from sandboxd.contract.processes import Strict

LINE_BYTES: Final = 4 * 1024 * 1024
"""The longest line: a config with all its labels."""
PLACE: Final = "/tmp"  # noqa: S108 - in a mount namespace of its own, where this is the errand's directory
ARCHIVE: Final = "archive"
STORE: Final = "images"

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Short = Annotated[str, StringConstraints(max_length=4096)]
Long = Annotated[str, StringConstraints(max_length=2 * 1024 * 1024)]


class RegistrySettings(Strict):
    """What the operator said of registries, as far as this errand needs it."""

    insecure: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    mirrors: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    library: tuple[str, ...] = ()
    credentials: dict[str, tuple[str, str]] = Field(default_factory=dict, repr=False)
    """By host: name and password. Only those of the registry asked, and of its mirrors."""


class Errand(Strict):
    """What is to be fetched. The first line the program reads."""

    kind: Literal["oci", "docker", "rootfs", "registry"]
    """`registry`, or the format of the archive."""
    reference: str = ""
    platform: str
    config: ImageOverrides | None = None
    reserve_bytes: int = 0
    largest_bytes: int
    registries: RegistrySettings = RegistrySettings()


class FoundImage(Strict):
    """The image is found and described; the program waits for a line before it fetches anything of it."""

    event: Literal["found"]
    digest: Digest
    platform: Short
    total_bytes: int = Field(ge=0)
    layers: int = Field(ge=0)


class Moved(Strict):
    """So many bytes of layers are here."""

    event: Literal["moved"]
    done_bytes: int = Field(ge=0, le=2**60)
    total_bytes: int = Field(ge=0, le=2**60)


class Said(Strict):
    """A line for whoever looks on."""

    event: Literal["said"]
    text: Short


class Finished(Strict):
    """The image is made: a file in the errand's store. The last line of a success."""

    event: Literal["made"]
    digest: Digest
    platform: Short
    origin_digest: Digest | None
    dropped: dict[Short, int] = Field(max_length=64)
    env: dict[Long, Long] = Field(max_length=65536)
    entrypoint: list[Long] = Field(max_length=4096)
    cmd: list[Long] = Field(max_length=4096)
    user: Short | None
    cwd: Short | None
    labels: dict[Long, Long] = Field(max_length=65536)
    ports: list[Short] = Field(max_length=65536)


class Refused(Strict):
    """It cannot be had. The last line of a failure."""

    event: Literal["refused"]
    reason: ImageReason
    text: Short


class Event(Strict):
    """Any line of the program."""

    of: Annotated[FoundImage | Moved | Said | Finished | Refused, Field(discriminator="event")]
