"""The book of decisions: equal ones are one row, hostile rows are none, and there is an end to how many."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.history.decision_store import OF_ONE, DecisionStore, Row, What
from sandboxd.history.decisions import DecisionBook

SANDBOX = "sbx" + "a" * 20


class Clock:
    def __init__(self) -> None:
        self.ms = 1_790_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def book(tmp_path: Path, clock: Clock) -> AsyncGenerator[DecisionBook]:
    made = DecisionBook(DecisionStore(tmp_path / "decisions.db", 1 << 24), clock)
    made.owners = lambda: {"10.231.0.1": SANDBOX}
    async with made.opened():
        yield made


def row(**fields: Any) -> dict[str, Any]:
    return {
        "sandbox": "10.231.0.1", "count": 1, "verdict": "deny", "source": "policy", "rule": "mode_allowlist",
        "reason": "not_allowed", "name": "evil.test", "address": None, "port": None, "protocol": None,
    } | fields  # fmt: skip


async def kept(book: DecisionBook, **asked: Any) -> list[Row]:
    options: dict[str, Any] = {"position": 0, "since_ms": 0, "verdict": None, "limit": 1000} | asked
    return await book.after(SANDBOX, **options)


async def test_equal_ones_within_ten_seconds_are_one(book: DecisionBook, clock: Clock) -> None:
    book.take("resolver", [row(), row(count=3)])
    clock.ms += 9_999
    book.take("resolver", [row()])
    (first,) = await kept(book)
    assert (first.times, first.last_ms - first.first_ms) == (5, 9_999)
    clock.ms += 1
    book.take("resolver", [row(), row(name="other.test")])
    assert [one.times for one in await kept(book)] == [5, 1, 1]
    assert book.counts["deny", "resolver"] == 7


async def test_a_reader_goes_on_where_it_was(book: DecisionBook, clock: Clock) -> None:
    book.take("proxy", [row(name=f"n{number}.test", verdict="allow" if number % 2 else "deny") for number in range(9)])
    first = await kept(book, limit=4)
    rest = await kept(book, position=first[-1].id)
    assert [one.what.name for one in [*first, *rest]] == [f"n{number}.test" for number in range(9)]
    assert len(await kept(book, verdict="allow")) == 4
    assert await kept(book, since_ms=clock.ms + 1) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"sandbox": "10.231.0.3"}, {"verdict": "maybe"}, {"source": "nobody"}, {"count": 0}, {"count": -1},
        {"count": 1 << 40}, {"count": "1"}, {"name": "a" * 256}, {"name": "a\nb"}, {"name": 7}, {"port": 70000},
        {"port": "80"}, {"rule": "r" * 1201}, {"reason": ["x"]}, {"protocol": "\x1b[2J"},
    ],
)  # fmt: skip
async def test_what_is_not_believable_is_nothing(book: DecisionBook, bad: dict[str, Any]) -> None:
    book.take("resolver", [row(**bad)])
    assert await kept(book) == []


async def test_a_flood_of_names_is_one_row_at_last(book: DecisionBook) -> None:
    for number in range(1000):
        book.take("resolver", [row(name=f"x{number}.evil.test")])
    rows = await kept(book)
    assert len(rows) == 201
    assert (rows[-1].what.reason, rows[-1].what.source) == ("too_many_to_list", "limit")
    assert sum(one.times for one in rows) == 1000


async def test_refusals_of_a_span_are_told_at_once(book: DecisionBook, clock: Clock) -> None:
    book.take("resolver", [row(name="early.test")])
    clock.ms += 1000
    begin = clock.ms
    book.take("proxy", [row(name=f"n{number}.test", port=443) for number in range(30)])
    book.take("proxy", [row(verdict="allow", name="fine.test")])
    denied = book.denied(SANDBOX, begin, begin + 5, 20)
    assert [one["name"] for one in denied] == [f"n{number}.test" for number in range(10, 30)]
    assert denied[0]["via"] == "proxy"


async def test_it_outlives_the_agent(tmp_path: Path, clock: Clock) -> None:
    for number in range(2):
        book = DecisionBook(DecisionStore(tmp_path / "decisions.db", 1 << 24), clock)
        book.owners = lambda: {"10.231.0.1": SANDBOX}
        async with book.opened():
            book.take("kernel", [row(name=None, address="1.2.3.4", port=number)])
            assert [one.what.port for one in await kept(book)] == list(range(number + 1))


def test_old_ones_and_too_many_go(tmp_path: Path) -> None:
    store = DecisionStore(tmp_path / "decisions.db", 1 << 26)
    store.open()
    what = What(SANDBOX, "deny", "policy", None, None, None, "1.2.3.4", 1, "tcp", "kernel")
    store.write(Row(number, number, number, 1, what) for number in range(1, OF_ONE + 11))
    store.trim([SANDBOX], 5)
    left = store.after(SANDBOX, 0, 0, None, OF_ONE + 100)
    assert (len(left), left[0].id) == (OF_ONE, 11)
    store.trim([], OF_ONE)
    assert len(store.after(SANDBOX, 0, 0, None, OF_ONE)) == 11
    store.close()


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "decisions.db"
    path.write_bytes(b"nothing of a database" * 1000)
    store = DecisionStore(path, 1 << 24)
    assert store.open() == 0
    store.close()
