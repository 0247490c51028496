"""Problems: each says what to do next and where it happened, and gives nothing else away."""

import pytest
from pydantic import ValidationError

from sandboxd.contract.messages import SandboxSpec
from sandboxd.contract.next_steps import NEXT_STEPS
from sandboxd.contract.problems import CODES, ProblemError
from sandboxd.contract.processes import RunSpec, SignalSpec, Strict
from sandboxd.contract.reasons import SandboxReason, after_end
from sandboxd.contract.validation import invalid

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def problem_of(model: type[Strict], text: str) -> ProblemError:
    with pytest.raises(ValidationError) as refused:
        model.model_validate_json(text)
    return invalid(refused.value)


def test_every_code_has_a_next_step() -> None:
    assert set(NEXT_STEPS) == set(CODES)


def test_a_hint_of_its_own_wins_over_the_next_step_of_its_code() -> None:
    assert ProblemError("no_shell", "none").body("req")["hint"] == NEXT_STEPS["no_shell"]
    assert ProblemError("no_shell", "none", hint="Do this.").body("req")["hint"] == "Do this."


@pytest.mark.parametrize("traceparent", ["", "00-x-y-01", f"00-{TRACE.upper()}-00f067aa0ba902b7-01", f"00-{TRACE}-00"])
def test_only_a_good_traceparent_is_repeated(traceparent: str) -> None:
    assert "trace_id" not in ProblemError("internal", "").body("req", traceparent)


def test_the_trace_id_is_that_of_the_request() -> None:
    assert ProblemError("internal", "").body("req", f"00-{TRACE}-00f067aa0ba902b7-01")["trace_id"] == TRACE


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (r'{"argv": ["a", "b\u0000"]}', "/argv/1"),
        ('{"argv": [""]}', "/argv"),
        (r'{"shell": "\u0000"}', "/shell"),
        (r'{"shell": "a", "cwd": "/\u0000"}', "/cwd"),
        ('{"argv": ["a"], "shell": "a"}', ""),
        ('{"shell": "a", "env": {"A": 1}}', "/env/A"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(body: str, path: str) -> None:
    row = problem_of(RunSpec, body).body("req")["errors"][0]
    assert row["path"] == path
    assert not row["message"].startswith("Value error")


def test_a_refused_name_has_the_path_of_its_value() -> None:
    class Named(Strict):
        env: dict[int, str]

    assert problem_of(Named, '{"env": {"a b": "secret"}}').body("req")["errors"][0]["path"] == "/env/a b"


def test_values_are_not_repeated() -> None:
    assert "hunter2" not in str(problem_of(SandboxSpec, '{"env": {"A": ["hunter2"]}}').body("req"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGWINCH", "SIGRTMIN", "SIGRTMIN+3", "SIGRTMAX-1"])
def test_signals_by_name(name: str) -> None:
    assert SignalSpec(signal=name).signal == name


@pytest.mark.parametrize("name", ["SIGZZ", "KILL", "9", "SIG_DFL", "SIGRTMIN+31", "sigterm"])
def test_what_is_no_signal_is_named_by_its_path(name: str) -> None:
    assert problem_of(SignalSpec, f'{{"signal": "{name}"}}').body("req")["errors"][0]["path"] == "/signal"


def test_what_to_do_after_an_end() -> None:
    assert "above 1024" in after_end(SandboxReason.OUT_OF_MEMORY, 1024)
    assert all(after_end(reason, 1).endswith(".") for reason in SandboxReason)
