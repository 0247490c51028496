"""Tokens and scopes: what one opens, and that nothing else is one."""

import os
import string
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.services.token_keys import TokenKeys
from tunnels import scopes, tokens
from tunnels.tokens import Claims, SigningKey, TokenError, Verifier, sign

KEY = SigningKey.from_seed(b"k" * 32)
NOW = 1_800_000_000


def claims(**changes: Any) -> Claims:
    given: dict[str, Any] = {
        "iss": "sandlot", "aud": "sandlot", "sub": "prj" + "a" * 20, "key": "key" + "a" * 20, "sbx": "sbx" + "a" * 20,
        "scp": ["files"], "iat": NOW, "exp": NOW + 900, "jti": "j",
    }  # fmt: skip
    return Claims.model_validate(given | changes)


def verifier(*keys: SigningKey) -> Verifier:
    made = Verifier()
    made.trust(key.public for key in keys or (KEY,))
    return made


def refusal(token: str, *, now: float = NOW, by: Verifier | None = None) -> str:
    with pytest.raises(TokenError) as refused:
        (by or verifier()).check(token, now_seconds=now)
    assert len(token) < 100 or token not in str(refused.value)
    return refused.value.reason


def test_what_was_signed_is_what_is_read() -> None:
    said = claims(port=8000, identity={"who": "ü", "n": [1, None], "none": None})
    assert verifier().check(sign(KEY, said), now_seconds=NOW) == said


def test_times_are_those_of_who_asks() -> None:
    token, by = sign(KEY, claims()), verifier()
    assert by.check(token, now_seconds=NOW + 899.9)
    assert refusal(token, now=NOW + 900, by=by) == "expired"
    assert refusal(token, now=NOW - 31, by=by) == "malformed"


def test_keys_that_are_not_trusted_any_more_sign_nothing() -> None:
    other = SigningKey.from_seed(b"o" * 32)
    token, by = sign(KEY, claims()), verifier(KEY, other)
    assert by.check(token, now_seconds=NOW)
    by.trust([other.public])
    assert refusal(token, by=by) == "unknown"


@given(st.integers(0, 2000), st.sampled_from(string.ascii_letters + string.digits + "-_."))
def test_no_change_of_a_token_is_a_token(at: int, letter: str) -> None:
    token = sign(KEY, claims())
    at %= len(token)
    changed = token[:at] + letter + token[at + 1 :]
    try:
        said = verifier().check(changed, now_seconds=NOW)
    except TokenError:
        return
    # The last letter of a signature holds bits that mean nothing: the same token in another spelling.
    assert changed == token or (at == len(token) - 1 and said == claims())


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: "eyJ" + data.decode("latin-1")))
def test_no_text_is_a_token(text: str) -> None:
    assert refusal(text) in {"malformed", "unknown"}


@pytest.mark.parametrize("head", ['{"alg":"none"}', '{"alg":"HS256","kid":"%s"}', '{"alg":"EdDSA"}', "[]", "{"])
def test_the_algorithm_is_not_the_tokens_to_choose(head: str) -> None:
    _, body, signature = sign(KEY, claims()).split(".")
    made = tokens.encode(head.replace("%s", KEY.kid).encode())
    assert refusal(f"{made}.{body}.{signature}") in {"malformed", "unknown"}


@pytest.mark.parametrize(
    "changes", [{"aud": "other"}, {"iss": "other"}, {"sbx": "prj" + "a" * 20}, {"scp": "files"}, {"exp": "never"}]
)
def test_what_is_signed_must_also_make_sense(changes: dict[str, Any]) -> None:
    said = claims().model_dump(exclude_none=True) | changes
    assert refusal(jwt.encode(said, KEY.private, "EdDSA", {"kid": KEY.kid})) == "malformed"


def test_a_bound_token_is_for_nothing_else() -> None:
    port, path, free = claims(port=80), claims(path="/a"), claims()
    assert (port.is_bound, path.is_bound, free.is_bound) == (True, True, False)
    assert port.covers("dial", "80", None)
    assert not port.covers("dial", "81", None)
    assert not port.covers("files", "80", "/a")
    assert path.covers("files", None, "/a")
    assert not path.covers("files", None, "/b")
    assert not path.covers("files/stat", None, "/a")
    assert not path.covers_visit(80)
    assert port.covers_visit(80)
    assert not port.covers_visit(81)
    assert free.covers("run", None, None)
    assert free.covers_visit(1)


def test_nobody_grants_what_they_lack() -> None:
    assert scopes.grants(["admin"], "files")
    assert scopes.grants(["files"], "files:read")
    assert scopes.grants(["files:write"], "files:read")
    assert not scopes.grants(["files:read"], "files")
    assert not scopes.grants(["files:read"], "files:write")
    assert not scopes.grants(["processes"], "files:read")
    assert scopes.of_access(["admin"]) == ["processes", "files", "tunnels"]
    assert scopes.of_access(["files:read", "sandboxes"]) == ["files:read"]


def test_keys_rotate_and_the_old_ones_verify(tmp_path: Path) -> None:
    day = 86_400 * 1_000_000
    keys = TokenKeys(tmp_path / "keys", os.urandom, days=30)
    start = NOW * 1_000_000
    assert keys.tend(start)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    first = keys.signing(start)
    assert not keys.tend(start + 29 * day)
    assert keys.tend(start + 30 * day)
    assert keys.signing(start + 30 * day).kid == first.kid, "nodes hear of it before it signs"
    second = keys.signing(start + 30 * day + 61_000_000)
    assert second.kid != first.kid
    again = TokenKeys(tmp_path / "keys", os.urandom, days=30)
    assert again.public() == keys.public() == [first.public, second.public]
    assert keys.tend(start + 39 * day)
    assert keys.public() == [second.public]


def test_a_file_of_keys_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text('{"keys": [{"seed": "x"}]}')
    keys = TokenKeys(tmp_path / "keys", os.urandom, days=30)
    assert keys.tend(NOW * 1_000_000)
    assert len(keys.public()) == 1
