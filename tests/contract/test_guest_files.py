"""The guest protocol: files, with the rights of a user."""

import pytest

from guest_kit import RawGuest, process_id


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> RawGuest:
    return raw_guest


def test_files_are_written_whole(guest: RawGuest) -> None:
    place = f"/tmp/{process_id()}"
    assert guest.put(place, b"one").json == {"path": place, "size_bytes": 3}
    assert guest.put(place, b"second").status == 200
    assert guest.text(["cat", place]) == "second"
    assert guest.text(["stat", "-c", "%a %u", place]) == "644 0\n"
    guest.text(["chmod", "640", place])
    assert guest.put(place, b"third").status == 200
    assert guest.text(["stat", "-c", "%a", place]) == "640\n"
    assert guest.put(place, b"x", mode="0755").status == 200
    assert guest.text(["stat", "-c", "%a", place]) == "755\n"
    assert guest.text("ls -a /tmp | grep -c '^.sandlot-' || true") == "0\n"


def test_relative_paths_and_parents(guest: RawGuest) -> None:
    base = f"/tmp/{process_id()}"
    guest.text(["mkdir", base])
    guest.put("a/b/c", b"x", cwd=base).refused(404, "file_not_found")
    assert guest.put("a/b/c", b"x", cwd=base, parents=1).json["path"] == f"{base}/a/b/c"
    assert guest.text(["cat", f"{base}/a/b/c"]) == "x"
    guest.put(f"{base}/a/b/c/d", b"x", parents=1).refused(409, "not_a_directory")
    guest.put(f"{base}/a", b"x").refused(409, "is_directory")
    guest.put(f"{base}/a/", b"x").refused(409, "is_directory")


@pytest.mark.parametrize("path", ["", "a" * 256, "/" + "a/" * 2050 + "x", "a\0b"])
def test_paths_no_file_system_takes(guest: RawGuest, path: str) -> None:
    guest.put(path, b"x").refused(400, "invalid_path")


def test_a_file_is_the_users_own(guest: RawGuest) -> None:
    base = f"/tmp/{process_id()}"
    guest.text(f"mkdir {base}; chmod 777 {base}; mkdir -m 700 {base}/closed")
    assert guest.put(f"{base}/mine", b"x", user="12345:54321").status == 201
    assert guest.text(["stat", "-c", "%u %g", f"{base}/mine"]) == "12345 54321\n"
    guest.put(f"{base}/closed/x", b"x", user="12345").refused(403, "permission_denied")
    guest.put(f"{base}/closed/deep/x", b"x", user="12345", parents=1).refused(403, "permission_denied")
    guest.put("/etc/sandlot-test", b"x", user="12345").refused(403, "permission_denied")
    guest.put(f"{base}/x", b"x", user="nosuchuser").refused(422, "user_not_found")
    # the guest itself is still who it was
    assert guest.put(f"{base}/closed/x", b"x").status == 201


def test_a_link_gives_no_rights_and_is_replaced(guest: RawGuest) -> None:
    base = f"/tmp/{process_id()}"
    secret = f"/tmp/{process_id()}"
    guest.text(f"mkdir {base}; chmod 777 {base}; mkdir -m 755 {secret}; echo kept > {secret}/file")
    guest.text(f"ln -s {secret} {base}/dir; ln -s {secret}/file {base}/link", user="12345")
    guest.put(f"{base}/dir/file", b"overwritten", user="12345").refused(403, "permission_denied")
    assert guest.put(f"{base}/link", b"mine", user="12345").status == 200
    assert guest.text(f"cat {secret}/file {base}/link") == "kept\nmine"
