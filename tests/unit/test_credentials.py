"""What travels to the node's proxy beside a policy."""

import base64
from typing import Any

import pytest

from netpolicy.credentials import Credentials

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
        {"values": ["A"]},
        {"values": {"A": 1}},
    ],
)
def test_anything_else_is_refused_without_quoting_it(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="credentials") as caught:
        Credentials.from_json(CREDENTIALS.to_json() | change)
    assert "BBBB" not in str(caught.value)
