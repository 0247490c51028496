"""API keys: two renderings of the same bytes, and everything that is none."""

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.services import keys

SECRETS = st.binary(min_size=20, max_size=20)
LAST = "abcdefghijklmnopqrstuvwxyz234567"


def key_of(secret: bytes) -> bytes:
    return keys.new_key(lambda _: secret)


@given(SECRETS)
def test_both_renderings_name_the_same_key(secret: bytes) -> None:
    key = key_of(secret)
    assert len(key) == keys.KEY_BYTES
    base32, e2b = keys.parse(keys.render("project", key)), keys.parse(keys.render_e2b(key))
    assert base32 == e2b
    assert base32 is not None
    assert base32 == ("project", keys.digest_of(key))
    assert keys.decode(keys.render("project", key)) == key == keys.decode(keys.render_e2b(key))
    operator = keys.parse(keys.render("operator", key))
    assert operator is not None
    assert operator.kind == "operator"


def test_the_form_is_the_documented_one() -> None:
    key = key_of(bytes(range(20)))
    assert key[20:] == zlib.crc32(b"sandlot" + bytes(range(20))).to_bytes(4, "big")
    assert keys.render("project", key).startswith("sandlot_aaaqeayeaudaocajbifqydiob4")
    assert len(keys.render("project", key)) == len("sandlot_") + 39
    assert len(keys.render_e2b(key)) == len("e2b_") + 48
    assert keys.prefix_of("project", key) == "sandlot_aaaqea"


@given(SECRETS, st.integers(0, 38), st.sampled_from(LAST))
def test_one_wrong_character_is_noticed(secret: bytes, at: int, character: str) -> None:
    text = keys.render("project", key_of(secret))
    body = list(text.removeprefix("sandlot_"))
    if body[at] == character:
        return
    body[at] = character
    assert keys.parse("sandlot_" + "".join(body)) is None


def test_padding_bits_must_be_zero() -> None:
    text = keys.render("project", key_of(os.urandom(20)))
    accepted = [character for character in LAST if keys.parse(text[:-1] + character) is not None]
    assert accepted == [text[-1]]


@pytest.mark.parametrize(
    "form",
    [
        "{}a", "{}=", "{}\n", " {}", "sandlot-{body}", "e2b_{body}", "sandlotxx_{body}", "SANDLOT_{body}", "{body}",
        "sandlot_{short}",
    ],
)  # fmt: skip
def test_other_forms_are_none(form: str) -> None:
    whole = keys.render("project", key_of(os.urandom(20)))
    body = whole.removeprefix("sandlot_")
    assert keys.parse(form.format(whole, body=body, short=body[:-1])) is None
    assert keys.parse(whole.upper()) is None


@given(st.text(max_size=60) | st.from_regex(r"\A(sandlot(op)?_[a-z2-7]{39}|e2b_[0-9a-f]{48})\Z"))
def test_anything_else_is_refused_without_a_fuss(text: str) -> None:
    assert keys.parse(text) is None
