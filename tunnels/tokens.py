"""Sandbox tokens: what they say, how they are signed, and whether one is to be believed. Pure: time comes in.

Ed25519 alone: the algorithm is never taken from the token.
"""

import hashlib
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunnels.scopes import may

ISSUER: Final = "sandlot"
AUDIENCE: Final = "sandlot"
ALGORITHM: Final = "EdDSA"
MOST_TOKEN_BYTES: Final = 4096
MOST_IDENTITY_BYTES: Final = 1024
_CACHE_SIZE: Final = 4096
_SKEW_SECONDS: Final = 30
"""How far the clock of who checks may be behind the clock of who signed."""
_SHAPE: Final = re.compile(r"eyJ[A-Za-z0-9_-]{1,256}\.[A-Za-z0-9_-]{1,3600}\.[A-Za-z0-9_-]{86}")
_ID: Final = r"^{}[a-z2-7]{{20}}$"


class TokenError(Exception):
    """A token is not to be believed: `malformed`, `unknown`, `expired`, `wrong_sandbox`, `revoked`, `unverifiable`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Claims(BaseModel):
    """What a token says."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    iss: str
    aud: str
    sub: str = Field(pattern=_ID.format("prj"))
    key: str = Field(pattern=_ID.format("key"))
    sbx: str = Field(pattern=_ID.format("sbx"))
    scp: list[str] = Field(max_length=64)
    port: int | None = Field(default=None, ge=1, le=65_535)
    path: str | None = Field(default=None, max_length=4096)
    identity: dict[str, Any] | None = None
    iat: int
    exp: int
    jti: str = Field(max_length=64)

    @property
    def is_bound(self) -> bool:
        """Whether it is for one port or one file only, so that it may stand in an address."""
        return self.port is not None or self.path is not None

    def may(self, area: str, *, write: bool) -> bool:
        """Tell whether its scopes allow reading, or writing, an area."""
        return may(self.scp, area, write=write)

    def covers(self, call: str, port: str | None, path: str | None) -> bool:
        """Tell whether it is for such a call, by the call's `port` and `path`: a bound one is for nothing else."""
        if self.port is not None and (call != "dial" or port != str(self.port)):
            return False
        return self.path is None or (call == "files" and path == self.path)

    def covers_visit(self, port: int) -> bool:
        """Tell whether it opens what the http tunnel of a port leads to."""
        return self.path is None and self.port in {None, port}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs; `public` and `kid` follow from it, and are worked out once."""

    private: Ed25519PrivateKey
    public: bytes
    kid: str

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        private = Ed25519PrivateKey.from_private_bytes(seed)
        public = private.public_key().public_bytes_raw()
        return cls(private, public, kid_of(public))


def kid_of(public: bytes) -> str:
    """Name a key by its thumbprint (RFC 7638): nobody can give another key the same name."""
    canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{encode(public)}"}}'
    return encode(hashlib.sha256(canonical.encode()).digest())


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return an object as JSON of one form."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def jwk_of(public: bytes) -> dict[str, str]:
    """Return a public key as others read it."""
    return {"kty": "OKP", "crv": "Ed25519", "x": encode(public), "kid": kid_of(public), "alg": ALGORITHM, "use": "sig"}


def sign(key: SigningKey, claims: Claims) -> str:
    """Return the token."""
    said = {name: value for name, value in claims.model_dump().items() if value is not None}
    return jwt.encode(said, key.private, ALGORITHM, {"kid": key.kid})


def looks_like_token(text: str) -> bool:
    """Tell a token from a key, by its shape alone."""
    return text.startswith("eyJ")


class Verifier:
    """Checks tokens against the keys it trusts, and remembers those that were good."""

    def __init__(self) -> None:
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._known: OrderedDict[bytes, Claims] = OrderedDict()

    def trust(self, keys: Iterable[bytes]) -> None:
        """Trust these public keys and no others."""
        fresh = {kid_of(key): Ed25519PublicKey.from_public_bytes(key) for key in keys}
        if fresh.keys() != self._keys.keys():
            self._known.clear()
        self._keys = fresh

    def check(self, token: str, *, now_seconds: float) -> Claims:
        """Return what a token says. TokenError: `malformed`, `unknown`, `expired`."""
        if len(token) > MOST_TOKEN_BYTES or _SHAPE.fullmatch(token) is None:
            raise TokenError("malformed", "This is not a token.")
        mark = hashlib.sha256(token.encode()).digest()
        claims = self._known.get(mark)
        if claims is None:
            claims = self._read(token)
            self._known[mark] = claims
            if len(self._known) > _CACHE_SIZE:
                self._known.popitem(last=False)
        if claims.exp <= now_seconds:
            raise TokenError("expired", "The token has expired.")
        if claims.iat > now_seconds + _SKEW_SECONDS:
            raise TokenError("malformed", "The token is from the future.")
        return claims

    def _read(self, token: str) -> Claims:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise TokenError("unknown", "The token is signed by no key that is trusted here.")
            # Times are checked above, by a clock that is passed in.
            options = _OPTIONS
            said: Mapping[str, Any] = jwt.decode(
                token, key, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER, options=options
            )
            return Claims.model_validate(said)
        except (jwt.InvalidTokenError, ValidationError, RecursionError):
            raise TokenError("malformed", "The token is not whole, or not from here.") from None


_OPTIONS: Final[Any] = {
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "require": ["iss", "aud", "sub", "key", "sbx", "scp", "iat", "exp", "jti"],
}
