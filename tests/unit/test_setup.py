from pathlib import Path

import pytest

from infra.setup import __main__ as setup
from infra.setup import base_image, guest, runsc
from infra.setup.base_image import Target, read_targets, sources_of_host
from infra.setup.places import point, runsc_path
from infra.setup.progress import Progress, SetupError
from infra.setup.toolchain import OLDEST_GO, go_version

BIN = "#!/bin/sh\necho 'runsc version {version}'\n"


@pytest.mark.parametrize("version", ["release-20260824.0", "release-20261101.1", "sandlot-20260905"])
def test_runsc_new_enough(version: str) -> None:
    assert runsc.refusal(version) is None


@pytest.mark.parametrize(
    "version",
    [
        "0.0~20240729.0",
        "0.0~20221219.0",
        "release-20260817.0",
        "release-20240101.0",
        "VERSION_MISSING",
        "sandlot-20260823",
    ],
)
def test_runsc_refused(version: str) -> None:
    assert runsc.refusal(version)


def test_runsc_version_is_read() -> None:
    assert runsc.version_of("runsc version release-20260831.0\nspec: 1.2.1\n") == "release-20260831.0"
    assert runsc.version_of("something else") is None


def executable(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(BIN.format(version=version))
    path.chmod(0o755)
    return path


def test_runsc_on_path_is_kept_with_its_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "bin" / "runsc", "release-20261001.0")
    (tmp_path / "bin" / "gvisor-bin").mkdir()
    (tmp_path / "bin" / "gvisor-bin" / "gvisor_sentry").write_text("x")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    cache = tmp_path / "cache"
    cache.mkdir()
    assert runsc.provide(Progress(cache / "logs"), cache) == "release-20261001.0"
    assert runsc_path(cache).resolve() == cache / "runsc" / "release-20261001.0" / "runsc"
    assert (runsc_path(cache).parent / "gvisor-bin" / "gvisor_sentry").exists()
    # And the second time it is there.
    (tmp_path / "bin" / "runsc").unlink()
    assert runsc.provide(Progress(cache / "logs"), cache) == "release-20261001.0"


def test_runsc_from_the_distribution_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executable(tmp_path / "bin" / "runsc", "0.0~20240729.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def nothing(_progress: Progress, _cache: Path) -> None:
        return None

    monkeypatch.setattr(runsc, "_from_release", nothing)
    monkeypatch.setattr(runsc, "_from_module", nothing)
    with pytest.raises(SetupError) as caught:
        runsc.provide(Progress(tmp_path / "logs"), tmp_path)
    assert caught.value.fix
    assert "distribution" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.27 linux/arm64", (1, 27, 0)),
        ("go version devel abcdef", None),
    ],
)
def test_go_version(said: str, version: tuple[int, int, int] | None) -> None:
    assert go_version(said) == version


def test_go_too_old() -> None:
    version = go_version("go version go1.19.8 linux/amd64")
    assert version is not None
    assert version < OLDEST_GO


def test_mirror_of_a_debian_host_is_used_for_the_image() -> None:
    targets = read_targets(
        "http://mirror/debian/|trixie|main\nhttp://mirror/debian/|trixie-updates|main\n"
        "http://mirror/security/|trixie-security|main\nhttp://elsewhere/|nodistro|main\nbroken\n"
    )
    assert sources_of_host("debian", "trixie", targets) == [
        "deb http://mirror/debian/ bookworm main",
        "deb http://mirror/debian/ bookworm-updates main",
        "deb http://mirror/security/ bookworm-security main",
    ]


@pytest.mark.parametrize(
    ("os_id", "targets"),
    [
        ("ubuntu", [Target("http://mirror/ubuntu/", "noble", "main")]),
        ("debian", [Target("http://mirror/debian/", "trixie", "main")]),
        ("debian", []),
    ],
)
def test_other_hosts_leave_the_mirror_to_the_builder(os_id: str, targets: list[Target]) -> None:
    assert sources_of_host(os_id, "trixie", targets) == []


def test_guest_hash_is_of_what_is_built(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main")
    before = guest.sources_hash(tmp_path)
    (tmp_path / "main_test.go").write_text("package main")
    (tmp_path / "notes.md").write_text("hm")
    assert guest.sources_hash(tmp_path) == before
    (tmp_path / "main.go").write_text("package main // other")
    assert guest.sources_hash(tmp_path) != before


def test_base_image_that_is_there_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = base_image._key()
    images = tmp_path / "images"
    images.mkdir()
    for suffix in ("erofs", "json"):
        (images / f"base-{key}.{suffix}").touch()
    assert base_image.provide(Progress(tmp_path / "logs"), tmp_path) == key
    assert (images / "base.erofs").resolve() == images / f"base-{key}.erofs"
    assert "already here" in capsys.readouterr().out


def test_link_is_replaced(tmp_path: Path) -> None:
    point(tmp_path / "current", "one")
    point(tmp_path / "current", "two")
    assert (tmp_path / "current").readlink() == Path("two")
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_command_that_fails_says_its_last_words_and_the_fix(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "logs")
    with pytest.raises(SetupError) as caught, progress.step("a step"):
        progress.command(["sh", "-c", "echo the cause; exit 3"], doing="trying", fix="do it right")
    assert "a step: trying failed (status 3)" in caught.value.what
    assert "the cause" in caught.value.what
    assert caught.value.fix == "do it right"


def test_command_that_is_missing_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no-such-program is missing"):
        Progress(tmp_path).command(["no-such-program"], doing="trying", fix="install it")


def test_set_up_reports_a_failed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_progress: Progress, _cache: Path) -> str:
        raise SetupError("it broke", "mend it")

    monkeypatch.setenv("SANDLOT_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(setup.STEPS, "guest", broken)
    assert setup.main(["guest"]) == 1
    assert "it broke\n  fix: mend it" in capsys.readouterr().err


def test_set_up_knows_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main(["gust"]) == 2
    assert "guest" in capsys.readouterr().err
