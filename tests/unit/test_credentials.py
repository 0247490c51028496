"""What travels to the node's proxy beside a policy."""

import base64
from typing import Any

import pytest

from netpolicy.credentials import MAX_VALUE_BYTES, Credentials, CredentialsRefusedError

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nBBBB\n-----END PRIVATE KEY-----\n"
CREDENTIALS = Credentials(ca_certificate=PEM, ca_key=KEY, values={"TOKEN": 'qu"ote\n\u00e9'})


def test_credentials_survive_the_wire() -> None:
    assert Credentials.from_json(CREDENTIALS.to_json()) == CREDENTIALS


def test_no_rendering_shows_what_is_in_them() -> None:
    shown = repr(CREDENTIALS) + str(CREDENTIALS)
    assert "qu" not in shown
    assert "BBBB" not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"A": "not base64!"}},
        {"values": {"A": base64.b64encode(b"\xff\xfe").decode()}},
        {"values": {"A": base64.b64encode(b"x" * (MAX_VALUE_BYTES + 1)).decode()}},
        {"values": {f"A{number}": "" for number in range(33)}},
        {"values": ["A"]},
        {"values": {"A": 1}},
        {"ca_key": "BBBB"},
        {"ca_certificate": 1},
        {"more": 1},
    ],
)
def test_anything_else_is_refused_without_quoting_it(change: dict[str, Any]) -> None:
    with pytest.raises(CredentialsRefusedError) as caught:
        Credentials.from_json(CREDENTIALS.to_json() | change)
    assert "BBBB" not in str(caught.value)


def test_something_that_is_no_object_is_refused() -> None:
    with pytest.raises(CredentialsRefusedError):
        Credentials.from_json([])
