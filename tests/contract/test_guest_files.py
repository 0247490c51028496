"""The guest protocol: files, with the rights of a user."""

import base64
import gzip
import hashlib
import http.client
import json
import os
import re
from typing import Any
from urllib.parse import quote

import pytest

from guest_kit import RawGuest, Reply, eventually, process_id, zstd_of

ETAG = re.compile(r'"[0-9a-f-]{9,100}"')


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> RawGuest:
    return raw_guest


@pytest.fixture(name="base")
def _base(guest: RawGuest) -> str:
    """A directory that everybody may write to."""
    place = f"/tmp/{process_id()}"
    guest.text(["mkdir", "-m", "777", place])
    return place


def ask(guest: RawGuest, method: str, route: str, **query: Any) -> Reply:
    return guest.call(method, route, query=query)


def stat(guest: RawGuest, path: str, **query: Any) -> dict[str, Any]:
    reply = ask(guest, "GET", "files/stat", path=path, **({"follow": 1} | query))
    assert reply.status == 200, reply
    return reply.json


def get(guest: RawGuest, path: str, headers: Any = None, **query: Any) -> tuple[http.client.HTTPResponse, bytes]:
    answer = guest.send("GET", "files", query={"path": path, **query}, headers=headers).getresponse()
    return answer, answer.read()


def rows(reply: Reply) -> list[dict[str, Any]]:
    assert reply.status == 200, reply
    return [json.loads(line) for line in reply.body.splitlines()]


def listed(guest: RawGuest, base: str, **query: Any) -> list[str]:
    *found, end = rows(ask(guest, "GET", "directories", path=base, **query))
    assert end == {"more": False}
    return [row["path"].removeprefix(base + "/") for row in found]


# --- writing


def test_files_are_written_whole(guest: RawGuest, base: str) -> None:
    place = f"{base}/file"
    made = guest.put(place, b"one")
    assert made.status == 201
    assert (made.json["path"], made.json["name"], made.json["size_bytes"], made.json["mode"]) == (
        place, "file", 3, "0644",
    )  # fmt: skip
    assert (made.json["type"], made.json["uid"], made.json["owner"]) == ("file", 0, "root")
    assert guest.put(place, b"second").status == 200
    assert guest.text(["cat", place]) == "second"
    guest.text(["chmod", "640", place])
    assert guest.put(place, b"third").json["mode"] == "0640"
    assert guest.put(place, b"x", mode="0755").json["mode"] == "0755"
    assert guest.text(["ls", "-a", base]).split() == [".", "..", "file"]


def test_relative_paths_and_parents(guest: RawGuest, base: str) -> None:
    guest.put("a/b/c", b"x", cwd=base).refused(404, "file_not_found")
    assert guest.put("a/b/c", b"x", cwd=base, parents=1).json["path"] == f"{base}/a/b/c"
    assert guest.put("./a//b/c", b"x", cwd=base).json["path"] == f"{base}/a/b/c"
    assert guest.text(["cat", f"{base}/a/b/c"]) == "x"
    guest.put(f"{base}/a/b/c/d", b"x", parents=1).refused(409, "not_a_directory")
    guest.put(f"{base}/a", b"x").refused(409, "is_directory")
    guest.put(f"{base}/a/", b"x").refused(409, "is_directory")
    guest.put(f"{base}/a/..", b"x").refused(409, "is_directory")
    guest.text(f"ln -s a/b {base}/link")
    assert guest.put(f"{base}/link/../d", b"x").json["path"] == f"{base}/a/d"


@pytest.mark.parametrize("path", ["", "a" * 256, "/" + "a/" * 2050 + "x", "a\0b"])
def test_paths_no_file_system_takes(guest: RawGuest, path: str) -> None:
    guest.put(path, b"x").refused(400, "invalid_path")
    ask(guest, "GET", "files", path=path).refused(400, "invalid_path")


def test_a_file_is_the_users_own(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir -m 700 {base}/closed")
    assert guest.put(f"{base}/mine", b"x", user="12345:54321").status == 201
    assert guest.text(["stat", "-c", "%u %g", f"{base}/mine"]) == "12345 54321\n"
    guest.put(f"{base}/closed/x", b"x", user="12345").refused(403, "permission_denied")
    guest.put(f"{base}/closed/deep/x", b"x", user="12345", parents=1).refused(403, "permission_denied")
    guest.put("/etc/sandlot-test", b"x", user="12345").refused(403, "permission_denied")
    guest.put(f"{base}/x", b"x", user="nosuchuser").refused(422, "user_not_found")
    # the guest itself is still who it was
    assert guest.put(f"{base}/closed/x", b"x").status == 201


def test_what_is_replaced_keeps_its_owner_and_mode(guest: RawGuest, base: str) -> None:
    place = f"{base}/file"
    guest.text(f"touch {place}; chown 12345:54321 {place}; chmod 4750 {place}")
    assert guest.put(place, b"new").status == 200
    assert guest.text(["stat", "-c", "%a %u %g", place]) == "4750 12345 54321\n"
    # who may not give a file away has it as their own, without what it could do in the other's name
    assert guest.put(place, b"new", user="777").status == 200
    assert guest.text(["stat", "-c", "%a %u", place]) == "750 777\n"


def test_a_link_gives_no_rights_and_is_replaced(guest: RawGuest, base: str) -> None:
    secret = f"/tmp/{process_id()}"
    guest.text(f"mkdir -m 755 {secret}; echo kept > {secret}/file")
    guest.text(f"ln -s {secret} {base}/dir; ln -s {secret}/file {base}/link", user="12345")
    guest.put(f"{base}/dir/file", b"overwritten", user="12345").refused(403, "permission_denied")
    guest.put(f"{base}/link", b"more", user="12345", append=1).refused(403, "permission_denied")
    assert guest.put(f"{base}/link", b"mine", user="12345").status == 200
    assert guest.text(f"cat {secret}/file {base}/link") == "kept\nmine"


def test_appending(guest: RawGuest, base: str) -> None:
    place = f"{base}/log"
    assert guest.put(place, b"one\n", append=1, mode="0600").status == 201
    guest.text(f"ln -s log {base}/link")
    after = guest.put(f"{base}/link", b"two\n", append=1)
    assert (after.status, after.json["size_bytes"], after.json["mode"]) == (200, 8, "0600")
    assert guest.text(["cat", place]) == "one\ntwo\n"
    guest.put(base, b"x", append=1).refused(409, "is_directory")
    guest.text(["mkfifo", f"{base}/fifo"])
    guest.put(f"{base}/fifo", b"x", append=1).refused(400, "invalid_path")
    guest.put(f"{base}/fifo", b"x").refused(400, "invalid_path")


def test_conditions(guest: RawGuest, base: str) -> None:
    place = f"{base}/file"

    def put(data: bytes, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return guest.call("PUT", "files", data, query={"path": place}, headers=named)

    put(b"x", If_Match="*").refused(412, "generation_mismatch")
    first = put(b"one", If_None_Match="*")
    assert first.status == 201
    refused = put(b"two", If_None_Match="*").refused(412, "generation_mismatch")
    assert refused["etag"] == first.json["etag"]
    put(b"two", If_Match='"other"').refused(412, "generation_mismatch")
    second = put(b"two", If_Match=f'"other", {first.json["etag"]}')
    assert second.status == 200
    assert ETAG.fullmatch(second.json["etag"])
    assert second.json["etag"] != first.json["etag"]
    assert stat(guest, place)["etag"] == second.json["etag"]
    put(b"three", If_Match=first.json["etag"]).refused(412, "generation_mismatch")
    assert guest.text(["cat", place]) == "two"
    assert guest.text(["ls", "-a", base]).split() == [".", "..", "file"]


def test_packed_bodies_are_unpacked_inside(guest: RawGuest, base: str) -> None:
    plain = b"text " * 100_000
    for encoding, packed in (("gzip", gzip.compress(plain)), ("zstd", zstd_of(plain))):
        reply = guest.put(f"{base}/{encoding}", packed, encoding=encoding)
        assert (reply.status, reply.json["size_bytes"]) == (201, len(plain))
        guest.put(f"{base}/{encoding}", packed[:-9], encoding=encoding).refused(400, "malformed_request")
        guest.put(f"{base}/{encoding}", b"no such thing", encoding=encoding).refused(400, "malformed_request")
        assert get(guest, f"{base}/{encoding}")[1] == plain
    guest.put(f"{base}/other", b"", encoding="br").refused(422, "invalid_request")


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_an_upload_cut_anywhere_changes_nothing(guest: RawGuest, base: str, share: float) -> None:
    place = f"{base}/file"
    guest.put(place, b"before")
    data = os.urandom(3_000_000)
    for head in (f"Content-Length: {len(data)}", "Transfer-Encoding: chunked"):
        connection = guest.connect()
        connection.putrequest("PUT", f"/v1/files?path={quote(place)}")
        connection.putheader("Authorization", f"Bearer {guest.token}")
        name, _, value = head.partition(": ")
        connection.putheader(name, value)
        connection.endheaders()
        part = data[: int(len(data) * share)]
        connection.send(part if value != "chunked" else b"%x\r\n%s\r\n" % (len(data), part))
        eventually(lambda: len(guest.text(["ls", "-A", base]).split()) == 2)  # it has been begun
        connection.close()
        eventually(lambda: guest.text(["ls", "-A", base]).split() == ["file"])
        assert guest.text(["cat", place]) == "before"


# --- reading


def test_a_file_is_read_whole_or_in_part(guest: RawGuest, base: str) -> None:
    place, data = f"{base}/file", os.urandom(1_000_000)
    etag = guest.put(place, data).json["etag"]
    answer, body = get(guest, place)
    assert (answer.status, answer.headers["ETag"], answer.headers["Content-Length"]) == (200, etag, "1000000")
    assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()
    for query, offset, expected in (
        ({"first": 0, "last": 9}, "0", data[:10]),
        ({"first": 999_990}, "999990", data[-10:]),
        ({"first": 5, "last": 2_000_000}, "5", data[5:]),
        ({"suffix": 7}, "999993", data[-7:]),
        ({"suffix": 2_000_000}, "0", data),
    ):
        answer, body = get(guest, place, **query)
        assert (answer.status, answer.headers["Sandlot-Offset"], answer.headers["Sandlot-Size"]) == (
            200, offset, "1000000",
        )  # fmt: skip
        assert body == expected
    for query in ({"first": 1_000_000}, {"suffix": 0}):
        refused = ask(guest, "GET", "files", path=place, **query).refused(416, "range_not_satisfiable")
        assert refused["size_bytes"] == 1_000_000
    assert get(guest, place, {"If-None-Match": f'"x", W/{etag}'})[0].status == 304
    assert get(guest, place, {"If-None-Match": '"x"'})[0].status == 200
    assert get(guest, place, head=1)[0].status == 200


def test_what_cannot_be_read(guest: RawGuest, base: str) -> None:
    guest.text(f"echo secret > {base}/secret; chmod 600 {base}/secret; mkfifo {base}/fifo; mkdir {base}/dir")
    guest.text(f"ln -s loop {base}/loop; ln -s nowhere {base}/dangling")
    ask(guest, "GET", "files", path=f"{base}/none").refused(404, "file_not_found")
    ask(guest, "GET", "files", path=f"{base}/dangling").refused(404, "file_not_found")
    ask(guest, "GET", "files", path=f"{base}/secret/x").refused(409, "not_a_directory")
    ask(guest, "GET", "files", path=f"{base}/dir").refused(409, "is_directory")
    ask(guest, "GET", "files", path=f"{base}/fifo").refused(400, "invalid_path")
    ask(guest, "GET", "files", path="/dev/null").refused(400, "invalid_path")
    ask(guest, "GET", "files", path=f"{base}/loop").refused(400, "invalid_path")
    ask(guest, "GET", "files", path=f"{base}/secret", user="12345").refused(403, "permission_denied")
    ask(guest, "GET", "files", path=f"{base}/secret", user="12345", head=1).refused(403, "permission_denied")


def test_files_that_claim_no_size_have_their_content(guest: RawGuest, base: str) -> None:
    answer, body = get(guest, "/proc/cpuinfo")
    assert int(answer.headers["Content-Length"]) == len(body) > 10
    guest.put(f"{base}/empty", b"")
    answer, body = get(guest, f"{base}/empty")
    assert (answer.status, answer.headers["Content-Length"], body) == (200, "0", b"")


@pytest.mark.parametrize(
    "path", ["/proc/self/fd/0", "/proc/self/exe", "/proc/self/root/etc/passwd", "/proc/self/cwd/etc"]
)
def test_the_guests_own_descriptors_are_nobodys(guest: RawGuest, base: str, path: str) -> None:
    guest.text(["ln", "-s", path, f"{base}/link"])
    for user in ("root", "12345"):
        for place in (path, f"{base}/link"):
            assert ask(guest, "GET", "files", path=place, user=user).status in {400, 403}
            assert ask(guest, "GET", "archive", path=place, user=user).status in {400, 403}
    assert ask(guest, "GET", "files", path="/proc/self/environ", user="12345").status == 403
    assert ask(guest, "GET", "files", path="/proc/self/mem", user="12345").status == 403


def test_a_file_that_shrinks_breaks_its_answer(guest: RawGuest, base: str) -> None:
    guest.text(f"head -c 60000000 /dev/zero > {base}/file")
    answer = guest.send("GET", "files", query={"path": f"{base}/file"}).getresponse()
    assert answer.headers["Content-Length"] == "60000000"
    answer.read(1000)
    guest.text(f"truncate -s 0 {base}/file")
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()


def test_a_file_that_grows_is_as_long_as_it_was(guest: RawGuest, base: str) -> None:
    guest.text(f"head -c 60000000 /dev/zero > {base}/file")
    answer = guest.send("GET", "files", query={"path": f"{base}/file"}).getresponse()
    guest.text(f"echo more >> {base}/file")
    assert len(answer.read()) == 60_000_000


# --- looking


def test_stat_tells_every_kind(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir {base}/dir; ln -s dir {base}/link; ln -s nowhere {base}/dangling; mkfifo {base}/fifo")
    guest.text(f"touch -d 2001-02-03T04:05:06.789Z {base}/dir; chown 12345:0 {base}/fifo; chmod 1751 {base}/dir")
    found = stat(guest, f"{base}/dir")
    assert (found["type"], found["mode"], found["modified_at"]) == ("directory", "1751", "2001-02-03T04:05:06.789Z")
    assert stat(guest, f"{base}/link")["type"] == "directory"
    link = stat(guest, f"{base}/link", follow=0)
    assert (link["type"], link["symlink_target"], link["name"]) == ("symlink", "dir", "link")
    assert stat(guest, f"{base}/fifo")["type"] == "fifo"
    assert (stat(guest, f"{base}/fifo")["owner"], stat(guest, f"{base}/fifo")["group"]) == ("12345", "root")
    assert stat(guest, "/dev/null")["type"] == "device"
    assert stat(guest, "/")["path"] == "/"
    ask(guest, "GET", "files/stat", path=f"{base}/dangling", follow=1).refused(404, "file_not_found")
    assert stat(guest, f"{base}/dangling", follow=0)["symlink_target"] == "nowhere"


def test_names_that_are_not_utf8(guest: RawGuest, base: str) -> None:
    name = b"caf\xe9\n"
    encoded = base64.b64encode(base.encode() + b"/" + name).decode()
    made = guest.call("PUT", "files", b"x", query={"path_base64": encoded})
    assert made.status == 201
    assert made.json["path_base64"] == encoded
    assert "path" not in made.json
    assert made.json["name"] == "caf\ufffd\n"
    guest.text(["python3", "-c", f"import os; os.symlink({name!r}, b'{base}/link')"])
    first, second, _ = rows(ask(guest, "GET", "directories", path=base))
    assert first["path_base64"] == encoded
    assert base64.b64decode(second["symlink_target_base64"]) == name
    assert get(guest, f"{base}/link")[1] == b"x"
    moved = ask(guest, "POST", "files/move", path_base64=encoded, to=f"{base}/plain")
    assert moved.json["path"] == f"{base}/plain"
    ask(guest, "GET", "files", path_base64="?").refused(422, "invalid_request")
    ask(guest, "GET", "files", path="x", path_base64="eA==").refused(422, "invalid_request")


# --- directories


def test_directories_are_made(guest: RawGuest, base: str) -> None:
    ask(guest, "PUT", "directories", path=f"{base}/a/b").refused(404, "file_not_found")
    made = ask(guest, "PUT", "directories", path=f"{base}/a/b", parents=1, mode="2777")
    assert (made.status, made.json["mode"], made.json["type"]) == (201, "2777", "directory")
    again = ask(guest, "PUT", "directories", path=f"{base}/a/b/", mode="0700")
    assert (again.status, again.json["mode"]) == (200, "2777")
    guest.text(f"touch {base}/file; ln -s a {base}/link")
    assert ask(guest, "PUT", "directories", path=f"{base}/link").status == 200
    assert ask(guest, "PUT", "directories", path="/").status == 200
    ask(guest, "PUT", "directories", path=f"{base}/file").refused(409, "not_a_directory")
    ask(guest, "PUT", "directories", path=f"{base}/file/x", parents=1).refused(409, "not_a_directory")
    ask(guest, "PUT", "directories", path="/etc/x", user="12345").refused(403, "permission_denied")


def test_lists_are_sorted_by_the_bytes_of_paths(guest: RawGuest, base: str) -> None:
    names = ["a", "a/b", "a/b/c", "a-b", "a.b", "a0", "B", "é", "a/z"]
    guest.text(f"cd {base}; mkdir -p a/b; touch a/b/c a-b a.b a0 B é a/z; ln -s a link")
    whole = sorted([*names, "link"], key=str.encode)
    assert listed(guest, base, depth=3) == whole
    assert listed(guest, base, depth=2) == [name for name in whole if name.count("/") < 2]
    assert listed(guest, base) == [name for name in whole if "/" not in name]
    for limit in (1, 2, 3, 7):
        found: list[str] = []
        more = True
        while more:
            after = {"after": found[-1]} if found else {}
            *page, end = rows(ask(guest, "GET", "directories", path=base, depth=3, limit=limit, **after))
            found += [row["path"].removeprefix(base + "/") for row in page]
            assert len(page) <= limit
            more = end["more"]
        assert found == whole
    ask(guest, "GET", "directories", path=f"{base}/B").refused(409, "not_a_directory")
    ask(guest, "GET", "directories", path=f"{base}/none").refused(404, "file_not_found")


def test_what_is_closed_to_the_user_is_not_listed(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir {base}/open {base}/closed; touch {base}/open/x {base}/closed/x; chmod 700 {base}/closed")
    assert listed(guest, base, depth=2, user="12345") == ["closed", "open", "open/x"]
    ask(guest, "GET", "directories", path=f"{base}/closed", user="12345").refused(403, "permission_denied")


# --- changing


def test_files_are_changed(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir -p {base}/dir/deep; touch {base}/dir/deep/file; ln -s /etc/passwd {base}/dir/link")
    before = guest.text("stat -c '%a %u %Y' /etc/passwd")
    changed = ask(
        guest, "PATCH", "files", path=f"{base}/dir", mode="0750", owner="12345", group="54321",
        modified_at="2001-02-03T04:05:06.789Z", recursive=1,
    )  # fmt: skip
    assert (changed.status, changed.json["mode"], changed.json["uid"], changed.json["gid"]) == (
        200, "0750", 12345, 54321,
    )  # fmt: skip
    deep = stat(guest, f"{base}/dir/deep/file")
    assert (deep["mode"], deep["uid"], deep["modified_at"]) == ("0750", 12345, "2001-02-03T04:05:06.789Z")
    assert guest.text("stat -c '%a %u %Y' /etc/passwd") == before
    assert stat(guest, f"{base}/dir/link", follow=0)["uid"] == 12345
    assert ask(guest, "PATCH", "files", path=f"{base}/dir", mode="0000", user="12345").json["mode"] == "0000"
    ask(guest, "PATCH", "files", path=f"{base}/dir", owner="0", user="12345").refused(403, "permission_denied")
    ask(guest, "PATCH", "files", path="/etc/passwd", mode="0777", user="12345").refused(403, "permission_denied")
    ask(guest, "PATCH", "files", path=base, owner="nosuchuser").refused(422, "user_not_found")
    ask(guest, "PATCH", "files", path=base, group="nosuchgroup").refused(422, "user_not_found")
    ask(guest, "PATCH", "files", path=f"{base}/none", mode="0777").refused(404, "file_not_found")


def test_files_are_moved(guest: RawGuest, base: str) -> None:
    guest.text(f"cd {base}; echo a > a; echo b > b; mkdir d e; touch e/x; ln -s a link")
    ask(guest, "POST", "files/move", path=f"{base}/a", to=f"{base}/b").refused(409, "already_exists")
    assert guest.text(f"cat {base}/b") == "b\n"
    moved = ask(guest, "POST", "files/move", path=f"{base}/a", to=f"{base}/b", overwrite=1)
    assert (moved.json["path"], moved.json["size_bytes"]) == (f"{base}/b", 2)
    assert ask(guest, "POST", "files/move", path=f"{base}/link", to="d/link", cwd=base).json["type"] == "symlink"
    ask(guest, "POST", "files/move", path=f"{base}/d", to=f"{base}/e", overwrite=1).refused(409, "directory_not_empty")
    ask(guest, "POST", "files/move", path=f"{base}/b", to=f"{base}/d", overwrite=1).refused(409, "is_directory")
    ask(guest, "POST", "files/move", path=f"{base}/d", to=f"{base}/b", overwrite=1).refused(409, "not_a_directory")
    ask(guest, "POST", "files/move", path=f"{base}/d", to=f"{base}/d/d").refused(400, "invalid_path")
    ask(guest, "POST", "files/move", path=f"{base}/none", to=f"{base}/x").refused(404, "file_not_found")
    ask(guest, "POST", "files/move", path="/etc/passwd", to=f"{base}/x", user="12345").refused(403, "permission_denied")


def test_files_are_removed(guest: RawGuest, base: str) -> None:
    guest.text(
        f"cd {base}; mkdir -p d/e/f; touch d/e/f/g file; mkdir kept; touch kept/x; ln -s ../kept d/e/link; mkdir x"
    )
    ask(guest, "DELETE", "files", path=f"{base}/d").refused(409, "directory_not_empty")
    assert ask(guest, "DELETE", "files", path=f"{base}/x").status == 204
    assert ask(guest, "DELETE", "files", path=f"{base}/file").status == 204
    ask(guest, "DELETE", "files", path=f"{base}/file").refused(404, "file_not_found")
    assert ask(guest, "DELETE", "files", path=f"{base}/file", missing_ok=1).status == 204
    assert ask(guest, "DELETE", "files", path=f"{base}/none/none", missing_ok=1).status == 204
    ask(guest, "DELETE", "files", path=f"{base}/d", recursive=1, user="12345").refused(403, "permission_denied")
    assert ask(guest, "DELETE", "files", path=f"{base}/d", recursive=1).status == 204
    assert guest.text(["ls", "-R", base]).split() == [f"{base}:", "kept", f"{base}/kept:", "x"]
    ask(guest, "DELETE", "files", path="/", recursive=1).refused(409, "in_use")
    ask(guest, "DELETE", "files", path="/etc/passwd", user="12345").refused(403, "permission_denied")


def test_a_deep_tree_is_removed(guest: RawGuest, base: str) -> None:
    script = "import os\nfor _ in range(1500): os.mkdir('d' * 20); os.chdir('d' * 20)"
    guest.text(["python3", "-c", script], cwd=base)
    assert ask(guest, "DELETE", "files", path=base, recursive=1).status == 204
    ask(guest, "GET", "files/stat", path=base).refused(404, "file_not_found")
