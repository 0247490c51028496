"""Ids: one length, one alphabet, and the two that are derived."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.ids import TYPES, id_from_bytes, image_id_from_digest, is_id, new_id, process_id_from_key


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_an_id_is_a_dns_label_of_one_length(kind: str) -> None:
    drawn = new_id(kind, os.urandom)
    assert len(drawn) == 23
    assert is_id(kind, drawn)
    assert drawn.isalnum()
    assert drawn == drawn.lower()


@given(st.binary(min_size=13, max_size=13), st.binary(min_size=13, max_size=13))
def test_equal_ids_come_from_equal_bits(first: bytes, second: bytes) -> None:
    # The last four of 104 bits are dropped.
    same = (first[:12], first[12] >> 4) == (second[:12], second[12] >> 4)
    assert (id_from_bytes("sbx", first) == id_from_bytes("sbx", second)) == same


@pytest.mark.parametrize(
    "text", ["", "sbx", "sbx" + "a" * 19, "sbx" + "a" * 21, "sbx" + "A" * 20, "sbx" + "1" * 20, "img" + "a" * 20]
)
def test_what_is_no_sandbox_id(text: str) -> None:
    assert not is_id("sbx", text)


def test_a_newline_does_not_slip_through() -> None:
    assert not is_id("sbx", "sbx" + "a" * 20 + "\n")


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="xyz"):
        new_id("xyz", os.urandom)


def test_a_key_stands_for_one_process_of_one_sandbox() -> None:
    first = process_id_from_key("sbx" + "a" * 20, "key")
    assert is_id("prc", first)
    assert first == process_id_from_key("sbx" + "a" * 20, "key")
    assert first != process_id_from_key("sbx" + "b" * 20, "key")
    assert first != process_id_from_key("sbx" + "a" * 20, "kez")


def test_an_image_has_the_same_id_everywhere() -> None:
    digest = "sha256:" + "ab" * 32
    assert image_id_from_digest(digest) == image_id_from_digest(digest)
    assert is_id("img", image_id_from_digest(digest))
