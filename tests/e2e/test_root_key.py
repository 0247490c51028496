"""A new root key, issued on the machine while the api runs."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

import harness
from api.config import Settings
from api.services.root_key import NoProjectError, issue
from harness import Platform


@pytest.fixture(scope="module")
def box() -> Generator[Platform]:
    with harness.platform(runtime="fake") as started:
        yield started


def sandlotd(box: Platform, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.sandlotd", *words]
    return subprocess.run(command, env=dict(box.env), capture_output=True, text=True, check=False)


def works(box: Platform, key: str) -> bool:
    return httpx.get(f"{box.url}/v1/me", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_new_key_works_at_once_and_the_old_one_no_more(box: Platform) -> None:
    old = box.key
    assert works(box, old)
    done = sandlotd(box, "key", "new")
    assert done.returncode == 0, done.stderr
    new = done.stdout.strip()
    assert new == box.key != old
    assert works(box, new)
    box.wait_until(lambda: not works(box, old), "the old key refused")
    assert sandlotd(box, "key", "show").stdout.strip() == new
    assert (box.config.key_path.stat().st_mode & 0o777, box.config.key_path.owner()) == (0o600, box.config.api_user)


def test_a_lost_key_is_replaced_and_others_may_be_kept(box: Platform) -> None:
    old = box.key
    box.config.key_path.unlink()
    assert "key new" in sandlotd(box, "key", "show").stderr
    done = sandlotd(box, "key", "new", "--keep-old")
    assert done.returncode == 0, done.stderr
    assert works(box, old)
    assert works(box, done.stdout.strip())


def test_where_the_api_never_ran_it_says_so(box: Platform, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for path in tmp_path.parents[:2]:
        path.chmod(0o755)
    command = [sys.executable, "-m", "infra.sandlotd", "key", "new"]
    env = {**box.env, "SANDLOT_DATA_DIR": str(tmp_path / "data"), "SANDLOT_RUN_DIR": str(tmp_path / "run")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "first start makes it" in done.stderr


def test_without_a_database_there_is_none(tmp_path: os.PathLike[str]) -> None:
    settings = Settings(data_dir=tmp_path)  # pyright: ignore[reportArgumentType] - a path
    settings.private_dir.mkdir()
    with pytest.raises(Exception, match="no such table") as raised:
        issue(settings, keep_old=False, now_us=1, random_bytes=os.urandom)
    assert not isinstance(raised.value, NoProjectError)
    assert not (settings.private_dir / "root-key").exists()
