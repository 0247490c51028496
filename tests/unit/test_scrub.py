import base64
import json

import pytest

from api.services import keys
from infra.support.scrub import REMOVED, Scrubber

KEY = bytes(range(20))
SECRETS = (
    keys.render("project", keys.new_key(lambda count: KEY[:count])),
    keys.render("operator", keys.new_key(lambda count: KEY[:count])),
    keys.render_e2b(keys.new_key(lambda count: KEY[:count])),
    "known-to-the-scrubber",
    base64.b64encode(KEY).decode(),
)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "key {} used", '{{"a": "{}"}}', "https://h/?key={}&x=1", "sandbox:{}:1"])
def test_no_secret_passes(secret: str, around: str) -> None:
    scrubber = Scrubber(["known-to-the-scrubber", base64.b64encode(KEY).decode()])
    assert secret not in scrubber.text(around.format(secret))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("Authorization: Basic dXNlcjpodW50ZXIy", "dXNlcjpodW50ZXIy"),
        ('{"authorization": "Basic dXNlcjpodW50ZXIy"}', "dXNlcjpodW50ZXIy"),
        ("postgresql://user:hunter2@host/db", "hunter2"),
        ("redis://:hunter2@host/0", "hunter2"),
        ("password='hunter2'", "hunter2"),
        ('password: "with hunter2 inside"', "hunter2"),
        ("DB_PASSWORD=hunter2 started", "hunter2"),
        ('{"api_key": "hunter2"}', "hunter2"),
        ("token: hunter2", "hunter2"),
        ("jwt eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln end", "eyJzdWIiOiJ4In0"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----", "hunter2"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter2", "hunter2"),
    ],
)
def test_what_looks_like_a_credential_does_not_pass(text: str, secret: str) -> None:
    found = Scrubber([]).text(text)
    assert secret not in found
    assert REMOVED in found


def test_ordinary_words_stay() -> None:
    line = '{"event": "sandbox ended", "sandbox_id": "sbxab", "reason": "runtime_failed", "seconds": 0.1}'
    assert Scrubber(["", "short"]).text(line) == line


def test_a_document_loses_what_a_caller_fills() -> None:
    document = {
        "id": "sbx",
        "env": {"TOKEN": "hunter2"},
        "labels": {"customer": "hunter2"},
        "spec": {"env": {}, "hostname": "h", "secret_env": {"A": "hunter2"}, "list": [{"nonce": "hunter2"}]},
        "message": "password=hunter2",
        "key_id": "key1",
    }
    found = Scrubber([]).document(document)
    assert "hunter2" not in json.dumps(found)
    assert found["labels"] == {"customer": REMOVED}
    assert (found["id"], found["key_id"], found["spec"]["hostname"]) == ("sbx", "key1", "h")
