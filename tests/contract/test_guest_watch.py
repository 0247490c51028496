"""The guest protocol: watches tell everything, or that they could not."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from guest_kit import RawGuest, eventually, process_id


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> RawGuest:
    return raw_guest


@pytest.fixture(name="base")
def _base(guest: RawGuest) -> str:
    place = f"/tmp/{process_id()}"
    guest.text(["mkdir", "-m", "777", place])
    return place


class Watch:
    """A watch, and what it has told so far."""

    def __init__(self, guest: RawGuest, path: str, **query: Any) -> None:
        self.connection = guest.send("GET", "watch", query={"path": path, "recursive": 1, **query})
        self.answer = self.connection.getresponse()
        self.base = path
        self.events: list[dict[str, Any]] = []
        if self.answer.status == 200:
            assert self.next() == {"kind": "ready"}

    def next(self) -> dict[str, Any]:
        line = self.answer.readline()
        assert line, "the watch ended"
        return json.loads(line)

    def until(self, done: Callable[[dict[str, Any]], bool]) -> list[tuple[str, ...]]:
        """Read on until an event passes; returns what came, short."""
        came: list[tuple[str, ...]] = []
        while True:
            event = self.next()
            self.events.append(event)
            if event["kind"] != "keepalive":
                names = [event[name].removeprefix(self.base).lstrip("/") for name in ("path", "to") if event.get(name)]
                came.append((event["kind"], *names))
                if done(event):
                    return came

    def named(self, name: str) -> list[tuple[str, ...]]:
        return self.until(lambda event: event["path"] == f"{self.base}/{name}")

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def test_everything_is_told_in_order(guest: RawGuest, base: str) -> None:
    watch = Watch(guest, base)
    guest.text(f"cd {base}; echo x > a; chmod 600 a; mv a b; mkdir d; echo y > d/f; mv d e; rm e/f; rmdir e; touch end")
    came = watch.named("end")
    compact = [event for number, event in enumerate(came) if event[0] != "write" or came[number - 1] != event]
    assert compact == [
        ("create", "a"), ("write", "a"), ("chmod", "a"), ("rename", "a", "b"), ("create", "d"), ("create", "d/f"),
        ("write", "d/f"), ("rename", "d", "e"), ("remove", "e/f"), ("remove", "e"), ("create", "end"),
    ] or compact == [event for event in compact if event != ("write", "d/f")]  # fmt: skip
    assert all(event["is_directory"] == (event["path"].endswith(("/d", "/e"))) for event in watch.events)
    assert all(event["at"].endswith("Z") for event in watch.events)
    watch.close()


def test_an_upload_is_told_once_it_is_there(guest: RawGuest, base: str) -> None:
    """Nothing of what is written aside: a new file is made, one that was there is written to."""
    watch = Watch(guest, base)
    guest.put(f"{base}/a", b"x" * 3_000_000)
    guest.put(f"{base}/a", b"y" * 3_000_000)
    guest.put(f"{base}/end", b"")
    came = watch.named("end")
    assert came == [("create", "a"), ("write", "a"), ("create", "end")]
    watch.close()


def test_new_directories_are_watched_from_their_beginning(guest: RawGuest, base: str) -> None:
    watch = Watch(guest, base)
    script = (
        "import os\n"
        "for n in range(100):\n"
        "    os.makedirs(f'd{n}/deep/er')\n"
        "    open(f'd{n}/deep/er/file', 'w').close()\n"
        "    open(f'd{n}/file', 'w').close()\n"
        "open('end', 'w').close()"
    )
    guest.text(["python3", "-c", script], cwd=base)
    watch.named("end")
    # what is below was found by looking: it may come after `end`
    expected = {
        f"{base}/d{n}{rest}" for n in range(100) for rest in ("", "/deep", "/deep/er", "/deep/er/file", "/file")
    }
    guest.text(["touch", f"{base}/last"])
    watch.named("last")
    created = [event["path"] for event in watch.events if event["kind"] == "create"]
    assert expected <= set(created)
    assert len(created) == len(set(created))
    guest.text(["touch", f"{base}/d99/deep/er/later"])
    watch.named("d99/deep/er/later")
    watch.close()


def test_renames_in_and_out(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir -p {base}/in/d/e {base}/out/x/y; touch {base}/in/f {base}/out/x/y/z")
    watch = Watch(guest, f"{base}/in")
    guest.text(f"mv {base}/in/f {base}/out/f")
    assert watch.named("f") == [("remove", "f")]
    guest.text(f"mv {base}/in/d {base}/out/d")
    assert watch.named("d") == [("remove", "d")]
    guest.text(f"touch {base}/out/d/e/unseen; mv {base}/out/x {base}/in/x")
    assert watch.named("x/y/z") == [("create", "x"), ("create", "x/y"), ("create", "x/y/z")]
    guest.text(f"mv {base}/in/x {base}/in/w; touch {base}/in/w/y/new")
    assert watch.named("w/y/new") == [("rename", "x", "w"), ("create", "w/y/new")]
    watch.close()


def test_one_level_and_one_file(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir {base}/d; touch {base}/file")
    flat, single = Watch(guest, base, recursive=0), Watch(guest, f"{base}/file")
    guest.text(
        f"touch {base}/d/unseen; mkdir {base}/new; touch {base}/new/unseen; echo x >> {base}/file; touch {base}/end"
    )
    assert ("create", "d/unseen") not in (came := flat.named("end"))
    assert ("create", "new/unseen") not in came
    assert single.until(lambda event: event["kind"] == "write") == [("write", "")]
    guest.text(f"rm {base}/file")
    assert single.until(lambda event: event["kind"] == "remove")[-1] == ("remove", "")
    flat.close()
    single.close()


def test_too_much_is_an_overflow(guest: RawGuest, base: str) -> None:
    watch = Watch(guest, base)
    script = (
        "import os\n"
        "os.makedirs('made/while/nobody/looked')\n"
        "for n in range(200_000):\n"
        "    os.close(os.open(f'{\"n\" * 200}{n % 50}', os.O_CREAT)); os.unlink(f'{\"n\" * 200}{n % 50}')"
    )
    guest.text(["python3", "-c", script], cwd=base)
    assert watch.until(lambda event: event["kind"] == "overflow")[-1] == ("overflow", "")
    guest.text(f"touch {base}/made/while/nobody/looked/file")
    watch.named("made/while/nobody/looked/file")
    watch.close()


def test_a_watch_needs_the_right_to_read(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir -m 700 {base}/closed {base}/closed/d; mkdir {base}/open")
    guest.call("GET", "watch", query={"path": f"{base}/closed", "user": "12345"}).refused(403, "permission_denied")
    guest.call("GET", "watch", query={"path": f"{base}/none"}).refused(404, "file_not_found")
    watch = Watch(guest, base, user="12345")
    guest.text(f"touch {base}/closed/unseen {base}/closed/d/unseen; touch {base}/open/seen")
    assert watch.named("open/seen") == [("create", "open/seen")]
    watch.close()


def test_so_many_and_no_more(guest: RawGuest, base: str) -> None:
    watches = [Watch(guest, base) for _ in range(64)]
    assert {watch.answer.status for watch in watches} == {200}
    assert guest.call("GET", "watch", query={"path": base}).refused(429, "too_many_streams")["limit"] == 64
    watches.pop().close()

    def again() -> bool:
        watch = Watch(guest, base)
        if watch.answer.status != 200:
            watch.close()
            return False
        watches.append(watch)
        return True

    eventually(again)
    for watch in watches:
        watch.close()
