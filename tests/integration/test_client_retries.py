"""The client asks again when that is safe, and only then."""

from collections.abc import Iterator

import pytest

from sandlot import (
    ApiError,
    AuthenticationError,
    Client,
    ConflictError,
    InvalidRequestError,
    NoCapacityError,
    NotFoundError,
    RateLimitedError,
    RetryPolicy,
    Sandbox,
    SandboxEndedError,
    SandboxNotFoundError,
    ServerError,
    StdinClosedError,
    UnreachableError,
)
from sandlot._requests import Request
from sandlot.errors import SandlotError, from_problem
from sandlot.retries import Patience
from stub_api import Fault, StubApi, running

_FAST = RetryPolicy(attempts=5, first_seconds=0, longest_seconds=0)


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


@pytest.fixture
def client(api: StubApi) -> Iterator[Client]:
    with Client(api.url, api.key, retries=_FAST) as client:
        yield client


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_create_whose_answer_is_lost_makes_one_sandbox(api: StubApi, client: Client, when: str) -> None:
    api.faults.append(Fault("POST /v1/sandboxes", drop=when))
    sandbox = Sandbox.create(client=client)
    assert list(api.sandboxes) == [sandbox.id]
    first, second = api.seen("POST /v1/sandboxes")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_whose_answer_is_lost_starts_one_process(api: StubApi, client: Client, when: str) -> None:
    sandbox = Sandbox.create(client=client)
    api.faults.append(Fault("/run", drop=when))
    assert sandbox.run(["echo", "once"]).stdout == "once\n"
    assert api.starts == 1
    assert len(api.seen("/run")) == 2


def test_an_answer_cut_in_its_body_is_asked_for_again(api: StubApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.faults.append(Fault("/run", cut_body=20))
    assert sandbox.run(["exit", "7"]).exit_code == 7
    assert api.starts == 1


def test_a_server_at_work_is_asked_for_as_long_as_it_says_so(api: StubApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    api.faults += [Fault("/run", cut_body=1, spaces_first=True) for _ in range(12)]
    assert sandbox.run(["exit", "0"]).ok
    assert len(api.seen("/run")) == 13


def test_stdin_survives_lost_answers_and_short_writes(api: StubApi, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    process = sandbox.start(["cat"], stdin=True)
    api.stdin_limit = 1000
    api.faults += [Fault("/stdin", drop="before"), Fault("/stdin", drop="after"), Fault("/stdin", cut_body=3)]
    data = bytes(range(256)) * 20
    assert process.write_stdin(data) == len(data)
    process.close_stdin()
    assert bytes(api.process_started().stdin) == data
    assert process.wait().stdout.encode(errors="replace").count(b"A") == 20


def test_input_that_nobody_will_read_is_an_error(client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    process = sandbox.start(["waits"], stdin=True)
    process.close_stdin()
    with pytest.raises(StdinClosedError):
        process.write_stdin("late")


@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_a_proxy_in_between_is_asked_again(api: StubApi, client: Client, status: int) -> None:
    api.faults += [Fault("/me", status), Fault("/me", status)]
    assert client.me()["version"] == "stub"


def test_what_may_have_had_an_effect_is_not_sent_twice(api: StubApi, client: Client) -> None:
    once = Request("GET", "/v1/me", repeatable=False)
    for fault in (Fault("/me", drop="after"), Fault("/me", drop="before"), Fault("/me", 502)):
        api.faults.append(fault)
        with pytest.raises((UnreachableError, ServerError)):
            client.call(once)
    assert len(api.seen("/me")) == 3


def test_what_never_reached_the_server_is_sent_again_whatever_it_is() -> None:
    error = UnreachableError("refused", sent=False)
    assert Patience(_FAST).next_delay(error, repeatable=False) is not None
    with (
        pytest.raises(UnreachableError, match="cannot connect") as caught,
        Client("http://127.0.0.1:1", "key", retries=_FAST) as client,
    ):
        client.me()
    assert not caught.value.sent
    assert caught.value.hint is not None


def test_retry_after_is_heeded_and_a_long_one_is_handed_on() -> None:
    patience = Patience(RetryPolicy())
    short = from_problem(429, {"code": "rate_limited", "retryable": True, "retry_after_seconds": 7})
    assert patience.next_delay(short, repeatable=True) == 7
    long = from_problem(503, {"code": "no_capacity", "retryable": True, "retry_after_seconds": 3600})
    assert patience.next_delay(long, repeatable=True) is None


def test_a_server_that_asks_for_no_pause_is_not_asked_without_one() -> None:
    """What is at work is waited for by the clock, so each try must take some of it."""
    policy = RetryPolicy(patience_seconds=1)
    patience = Patience(policy)
    busy = from_problem(409, {"code": "operation_in_progress", "retryable": True, "retry_after_seconds": 0})
    delays: list[float | None] = []
    while len(delays) < 1000 and (not delays or delays[-1] is not None):
        delays.append(patience.next_delay(busy, repeatable=True))
    assert delays[0] == policy.first_seconds
    assert len(delays) < 10


def test_retry_after_of_the_header_counts(api: StubApi, client: Client) -> None:
    api.faults.append(Fault("/me", 429, {"code": "rate_limited", "retryable": True}, {"Retry-After": "3600"}))
    with pytest.raises(RateLimitedError) as caught:
        client.me()
    assert caught.value.retry_after_seconds == 3600
    assert len(api.seen("/me")) == 1


def test_pauses_grow_and_are_spread() -> None:
    error = UnreachableError("broken")
    plain = Patience(RetryPolicy(spread=lambda: 0))
    assert [plain.next_delay(error, repeatable=True) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8, None]
    spread = Patience(RetryPolicy(spread=lambda: 1))
    assert spread.next_delay(error, repeatable=True) == 0.1


def test_a_first_request_still_running_is_waited_for_by_the_clock() -> None:
    error = from_problem(409, {"code": "idempotency_in_flight", "retryable": True})
    patience = Patience(RetryPolicy(attempts=2, first_seconds=1, longest_seconds=1, spread=lambda: 0))
    delays = [patience.next_delay(error, repeatable=True) for _ in range(91)]
    assert delays == [1] * 90 + [None]


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_are_counted(api: StubApi, attempts: int) -> None:
    api.faults += [Fault("/me", 503, {"code": "store_unavailable", "retryable": True})] * 9
    policy = RetryPolicy(attempts=attempts, first_seconds=0)
    with Client(api.url, api.key, retries=policy) as client, pytest.raises(ServerError):
        client.me()
    assert len(api.seen("/me")) == attempts


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "malformed_request", InvalidRequestError),
        (401, "unauthenticated", AuthenticationError),
        (404, "sandbox_not_found", SandboxNotFoundError),
        (404, "image_not_found", NotFoundError),
        (409, "name_taken", ConflictError),
        (410, "sandbox_ended", SandboxEndedError),
        (422, "cwd_not_found", InvalidRequestError),
        (500, "internal", ServerError),
    ],
)
def test_a_final_error_is_raised_at_once_and_typed(
    api: StubApi, client: Client, status: int, code: str, kind: type[ApiError]
) -> None:
    problem = {
        "code": code,
        "detail": "what happened",
        "reason": "why",
        "hint": "do this",
        "request_id": "req1",
        "limit": 5,
    }
    api.faults.append(Fault("/me", status, problem))
    with pytest.raises(kind) as caught:
        client.me()
    error = caught.value
    assert (error.status, error.code, error.reason, error.hint) == (status, code, "why", "do this")
    assert error.members == {"limit": 5}
    assert "do this" in str(error)
    assert isinstance(error, SandlotError)
    assert len(api.seen("/me")) == 1


def test_no_capacity_is_tried_again_then_raised(api: StubApi, client: Client) -> None:
    api.faults += [Fault("POST /v1/sandboxes", 503, {"code": "no_capacity", "retryable": True})] * 5
    with pytest.raises(NoCapacityError):
        Sandbox.create(client=client)
    assert api.sandboxes == {}


def test_a_redirect_is_not_followed_with_the_key(api: StubApi, client: Client) -> None:
    api.faults.append(Fault("/me", 307, {}, {"Location": "http://127.0.0.1:1/elsewhere"}))
    with pytest.raises(SandlotError, match="redirected"):
        client.me()
