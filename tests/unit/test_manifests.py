"""Documents of images: read when they are what they should be, refused with a reason when not, never anything else."""

import json
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_kit import make_image, make_index, platform_row, tar_of
from sandboxd.images.addresses import Trust, permitted
from sandboxd.images.challenges import Challenge, parse_challenges, parse_retry_after
from sandboxd.images.failures import ImageReason, ImageSourceError
from sandboxd.images.manifests import (
    Described,
    Index,
    Manifest,
    Platform,
    choose,
    describe,
    fits,
    parse,
    parse_platform,
    parse_saved,
)

AMD64 = Platform("linux", "amd64")
REFUSALS = {ImageReason.CORRUPT, ImageReason.TOO_LARGE, ImageReason.UNSAFE_CONTENT}
NOW = datetime(2026, 9, 1, tzinfo=UTC)
IMAGE = make_image([tar_of({"a": b"a"})])


def config(settings: dict[str, Any]) -> Described:
    return describe(json.dumps(platform_row("linux/amd64") | {"rootfs": {"diff_ids": []}, "config": settings}).encode())


def reason_of(act: Any, *arguments: Any) -> ImageReason:
    with pytest.raises(ImageSourceError) as raised:
        act(*arguments)
    return raised.value.reason


def test_a_manifest_and_an_index() -> None:
    manifest, index = parse(IMAGE.manifest), parse(make_index((IMAGE, "linux/amd64")))
    assert isinstance(manifest, Manifest)
    assert [layer.digest for layer in manifest.layers] == IMAGE.layer_digests
    assert isinstance(index, Index)
    assert index.entries[0].digest == IMAGE.digest


def test_all_defaults_are_kept() -> None:
    seen = config(
        {
            "Env": ["A=1", "B==2", "A=3", "NOVALUE"],
            "User": "app:www",
            "WorkingDir": "srv//app/../x/",
            "Entrypoint": ["/bin/e", "-x"],
            "Cmd": ["c"],
            "Labels": {"org.opencontainers.image.version": "1"},
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "what?": {}},
        }
    ).config
    assert seen.env == {"A": "3", "B": "=2"}
    assert (seen.user, seen.cwd) == ("app:www", "/srv/x")
    assert (seen.entrypoint, seen.cmd) == (("/bin/e", "-x"), ("c",))
    assert seen.labels == {"org.opencontainers.image.version": "1"}
    assert seen.ports == ("53/udp", "80/tcp")


def test_defaults_may_be_missing_or_null() -> None:
    names = ("Env", "User", "WorkingDir", "Entrypoint", "Cmd", "Labels", "ExposedPorts")
    assert config(dict.fromkeys(names)) == config({}) == config(dict.fromkeys(("User", "WorkingDir"), ""))
    assert config({}).config.cwd is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"Env": ["A=\0"]}, "unsafe_content"),
        ({"Env": ["=1"]}, "unsafe_content"),
        ({"Env": ["A=\ud800"]}, "unsafe_content"),
        ({"Env": "A=1"}, "corrupt"),
        ({"Env": [1]}, "corrupt"),
        ({"Env": [f"A{number}=" + "x" * 4000 for number in range(100)]}, "too_large"),
        ({"User": "a b"}, "unsafe_content"),
        ({"User": "x" * 65}, "unsafe_content"),
        ({"User": 0.5}, "corrupt"),
        ({"WorkingDir": "x" * 5000}, "corrupt"),
        ({"Cmd": ["x" * 100_000] * 2}, "too_large"),
        ({"Labels": {"a": 1}}, "corrupt"),
        ({"Labels": {f"{number}": "x" * 1000 for number in range(600)}}, "too_large"),
    ],
)
def test_defaults_nothing_could_use_are_refused(settings: dict[str, Any], reason: str) -> None:
    assert reason_of(config, settings) == reason


def test_old_and_ambiguous_documents_are_refused() -> None:
    document = json.loads(IMAGE.manifest)
    old: dict[str, Any] = {
        "schemaVersion": 1,
        "mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "fsLayers": [],
    }
    documents: tuple[dict[str, Any], ...] = (
        old,
        document | {"manifests": []},
        document | {"schemaVersion": 3},
        document | {"mediaType": 5},
    )
    for bad in documents:
        assert reason_of(parse, json.dumps(bad).encode()) == "corrupt"
    assert reason_of(parse, IMAGE.manifest, "application/vnd.oci.image.index.v1+json") == "corrupt"
    artefact = document | {"config": document["config"] | {"mediaType": "application/vnd.example.chart"}}
    assert reason_of(parse, json.dumps(artefact).encode()) == "unsafe_content"
    many = document | {"layers": document["layers"] * 1000}
    assert reason_of(parse, json.dumps(many).encode()) == "too_large"


def test_what_a_machine_can_run() -> None:
    assert fits(AMD64, AMD64)
    assert fits(Platform("linux", "amd64", "v2"), Platform("linux", "amd64", "v3"))
    assert not fits(Platform("linux", "amd64", "v3"), AMD64)
    assert fits(Platform("linux", "arm64", "v8"), Platform("linux", "arm64"))
    assert not fits(Platform("windows", "amd64"), AMD64)
    index = Index(
        tuple(
            entry
            for text in ("linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "unknown/unknown")
            for entry in [_entry(text)]
        )
    )
    assert choose(index, AMD64).platform == AMD64
    assert choose(index, Platform("linux", "amd64", "v4")).platform == Platform("linux", "amd64", "v3")
    assert reason_of(choose, index, Platform("linux", "arm64")) == "wrong_platform"
    assert str(parse_platform("linux/arm64/v8")) == "linux/arm64/v8"
    for bad in ("", "linux", "linux/", "linux/amd64/", "Linux/amd64", "a/b/c/d"):
        with pytest.raises(ValueError, match="platform"):
            parse_platform(bad)


def _entry(platform: str) -> Any:
    index = parse(make_index((IMAGE, platform)))
    assert isinstance(index, Index)
    return index.entries[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def _changed(draw: st.DrawFn, source: bytes) -> bytes:
    """Put something else at one place of a document."""
    document: Any = json.loads(source)
    at: Any = document
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))  # pyright: ignore[reportUnknownArgumentType]
        key = draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
            at = cast("Any", at[key])
            continue
        at[key] = draw(JSON)
        return json.dumps(document).encode()


def outcome(act: Any, data: bytes) -> Any:
    """What came of it; every refusal has a reason that fits a document."""
    try:
        return act(data)
    except ImageSourceError as error:
        return error.reason


@given(_changed(IMAGE.manifest) | _changed(make_index((IMAGE, "linux/amd64"))) | st.binary(max_size=64))
def test_any_manifest_is_read_or_refused(data: bytes) -> None:
    seen = outcome(parse, data)
    assert isinstance(seen, Index | Manifest) or seen in REFUSALS


@given(_changed(make_image([tar_of({})], {"Env": ["A=1"], "Labels": {"a": "b"}, "Cmd": ["x"]}).config))
def test_any_config_is_read_or_refused(data: bytes) -> None:
    seen = outcome(describe, data)
    if isinstance(seen, Described):
        assert all("\0" not in text for text in (*seen.config.env.values(), *seen.config.cmd))
    else:
        assert seen in REFUSALS


@given(_changed(b'[{"Config": "a.json", "RepoTags": ["a:b"], "Layers": ["a/layer.tar"]}]'))
def test_any_list_of_saved_images_is_read_or_refused(data: bytes) -> None:
    seen = outcome(parse_saved, data)
    assert isinstance(seen, tuple) or seen in REFUSALS


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("Basic", [Challenge("basic")]),
        ('Basic realm="a"', [Challenge("basic", {"realm": "a"})]),
        (
            'Bearer realm="https://t/x",service="s, t",scope="a:b:c d:e:f"',
            [Challenge("bearer", {"realm": "https://t/x", "service": "s, t", "scope": "a:b:c d:e:f"})],
        ),
        (
            'Bearer realm="x", Basic realm="y"',
            [Challenge("bearer", {"realm": "x"}), Challenge("basic", {"realm": "y"})],
        ),
        ('BEARER Realm = "a\\"b\\\\c" , error=x', [Challenge("bearer", {"realm": 'a"b\\c', "error": "x"})]),
        ('Bearer realm="a",realm="b"', [Challenge("bearer", {"realm": "a"})]),
        ("", []),
        ('Bearer realm="unclosed', [Challenge("bearer")]),
        ("x" * 20_000, []),
    ],
)
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


@given(st.text(max_size=200))
def test_any_challenge_is_read(header: str) -> None:
    parse_challenges(header)


def test_when_to_come_again() -> None:
    assert parse_retry_after("7", NOW) == 7
    assert parse_retry_after("Tue, 01 Sep 2026 00:00:30 GMT", NOW) == 30
    assert parse_retry_after("Tue, 01 Sep 2020 00:00:30 GMT", NOW) == 0
    for odd in (None, "", "soon", "-1", "1e9", "9" * 30, "²"):
        assert parse_retry_after(odd, NOW) is None


def test_which_addresses_may_be_reached() -> None:
    public, private = Trust(), Trust(private=True)
    for text in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        assert permitted(ip_address(text), public, own=False)
    for text in ("10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1", "2002:a00:1::"):
        assert not permitted(ip_address(text), public, own=True)
        assert permitted(ip_address(text), private, own=False)
    for text in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert not permitted(ip_address(text), public, own=True)
        assert not permitted(ip_address(text), private, own=False)
        assert permitted(ip_address(text), private, own=True)
    for text in ("169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1"):  # noqa: S104 - refused
        assert not permitted(ip_address(text), private, own=True)
    assert not permitted(ip_address("64:ff9b::7f00:1"), private, own=False)
    assert not permitted(ip_address("64:ff9b::a9fe:a9fe"), private, own=True)
