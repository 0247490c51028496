"""What callers send about secrets, and what they are shown: everything but the value."""

import base64
import binascii
import re
from typing import Annotated, Final

from pydantic import Field, StringConstraints, model_validator

from api.services.secret_hosts import canonical_host
from netpolicy.names import MAX_TEXT, NameRefusedError
from sandboxd.contract.processes import Open, Strict, Time
from sandboxd.contract.validation import invalid_field

NAME: Final = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
MAX_VALUE_BYTES: Final = 64 * 1024
MAX_HOSTS: Final = 64
_MAX_BASE64: Final = 4 * ((MAX_VALUE_BYTES + 2) // 3)
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")

SecretName = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
HostText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]


class PutSecret(Strict):
    """Body of `PUT /v1/secrets/{name}`: exactly one of value and value_base64. It replaces all that was there."""

    value: Annotated[str, StringConstraints(min_length=1, max_length=MAX_VALUE_BYTES)] | None = Field(
        default=None, repr=False
    )
    """Text without NUL, at most 64 KiB of UTF-8."""
    value_base64: Annotated[str, StringConstraints(min_length=1, max_length=_MAX_BASE64)] | None = Field(
        default=None, repr=False
    )
    """The same text's bytes in base64 (standard alphabet, padded)."""
    env: bool = False
    """It may be handed to sandboxes and builds, by `secret_env`."""
    hosts: list[HostText] = Field(default_factory=list[str], max_length=MAX_HOSTS)
    """Names of hosts that it may be sent to, `*.name` for those below one. Then the value is printable ASCII."""

    @model_validator(mode="after")
    def _one_value(self) -> "PutSecret":
        if (self.value is None) == (self.value_base64 is None):
            msg = "give exactly one of value and value_base64"
            raise ValueError(msg)
        return self

    def text(self) -> str:
        """Return the value. `invalid_request`, which never repeats it."""
        where = "/value" if self.value is not None else "/value_base64"
        try:
            raw = self.value.encode() if self.value is not None else _decoded(self.value_base64 or "")
            text = raw.decode()
        except (binascii.Error, ValueError):
            raise invalid_field(where, "value_error", "is not base64 of UTF-8 text") from None
        if not 1 <= len(raw) <= MAX_VALUE_BYTES:
            raise invalid_field(where, "value_error", f"must have 1 to {MAX_VALUE_BYTES} bytes")
        if "\0" in text:
            raise invalid_field(where, "value_error", "must not contain NUL")
        if self.hosts and _HEADER_VALUE.fullmatch(text) is None:
            message = "what goes into a header is printable ASCII without spaces around it: look for a line's end"
            raise invalid_field(where, "value_error", message)
        return text

    def canonical_hosts(self) -> list[str]:
        """Return the hosts, each once, in order. `invalid_request`."""
        found: set[str] = set()
        for place, host in enumerate(self.hosts):
            try:
                found.add(canonical_host(host))
            except NameRefusedError as error:
                raise invalid_field(f"/hosts/{place}", "name", str(error)) from error
        return sorted(found)


class SecretView(Open):
    """A secret. Nothing shows its value."""

    name: str
    version: int
    """Counts the changes of it."""
    env: bool
    hosts: list[str]
    created_at: Time
    updated_at: Time


class SecretList(Open):
    """A page of secrets."""

    items: list[SecretView]
    next_cursor: str | None


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
