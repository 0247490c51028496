"""How a gateway asks its node for a stream into a sandbox: one question, one answer, then bytes both ways. Pure.

The node decides: it looks the tunnel up and checks the token. The gateway is believed in one thing, who the client is.
"""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from tunnels.tokens import MOST_TOKEN_BYTES

MOST_TOKENS: Final = 4
"""Cookies of one name that are looked at: others may have set some too."""
LENGTH_BYTES: Final = 4
MOST_BYTES: Final = 65_536
"""Of a question or an answer."""


class StreamRequest(BaseModel):
    """A question: for the http tunnel to a port of a sandbox, or for the tls tunnel of a name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sandbox_id: str | None = Field(default=None, pattern=r"^sbx[a-z2-7]{20}$")
    port: int | None = Field(default=None, ge=1, le=65_535)
    server_name: str | None = Field(default=None, max_length=253)
    """Of a tls tunnel. With a sandbox and a port too where the name stands for them: below the gateway's domain."""
    client: str = Field(max_length=64)
    """The client's address."""
    tokens: list[str] = Field(default_factory=list[str], max_length=MOST_TOKENS)
    """What it brought; one that is good is enough."""


class StreamAnswer(BaseModel):
    """An answer. With a problem no bytes follow."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    problem: dict[str, Any] | None = None
    """A problem as the api would answer it."""
    identity: dict[str, Any] | None = None
    """What whoever made the token says of its bearer."""
    public: bool = False
    expires_at: int | None = None
    """Of the token that was good, in seconds since 1970."""
    token: int | None = None
    """Which one that was."""


def pack(message: BaseModel) -> bytes:
    """Render with the length in front."""
    body = message.model_dump_json(exclude_none=True).encode()
    return len(body).to_bytes(LENGTH_BYTES) + body


assert MOST_TOKENS * MOST_TOKEN_BYTES < MOST_BYTES  # noqa: S101 - any question fits
