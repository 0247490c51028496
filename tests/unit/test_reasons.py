"""One test a row of the reasons, and the order of certainty."""

from dataclasses import replace

import pytest

from sandboxd.contract.messages import ImageRef, SandboxSpec
from sandboxd.contract.reasons import REASONS, ROW_OF, Evidence, ReasonRow, SandboxReason, decide_reason
from sandboxd.contract.states import TERMINAL
from sandboxd.runner.evidence import describe

R = SandboxReason

SEEN = {
    R.NODE_RESTARTED: Evidence(same_boot=False),
    R.OUT_OF_MEMORY: Evidence(oom_kills=1),
    R.IMAGE_UNAVAILABLE: Evidence(image_error=True, guest_answered=False),
    R.NODE_DISK_FULL: Evidence(disk_full=True),
    R.START_FAILED: Evidence(guest_answered=False),
    R.RUNTIME_FAILED: Evidence(panic_log=True),
    R.GUEST_FAILED: Evidence(sentry_exit_code=0),
}
"""Reasons that are found out, with the evidence that shows each."""
BY_API = {R.NODE_LOST, R.NO_CAPACITY, R.PAUSED_EXPIRED, R.SNAPSHOT_UNUSABLE}
"""Reasons that no end on this node is decided by."""


def test_every_reason_has_one_row() -> None:
    assert len(ROW_OF) == len(REASONS) == len(SandboxReason)


@pytest.mark.parametrize("row", REASONS, ids=lambda row: row.reason)
def test_an_intent_is_the_reason_whatever_is_seen(row: ReasonRow) -> None:
    worst = Evidence(oom_kills=3, panic_log=True, same_boot=False, disk_full=True, guest_answered=False)
    assert decide_reason(replace(worst, intent=row.reason)) is row.reason


@pytest.mark.parametrize(("reason", "evidence"), SEEN.items(), ids=SEEN)
def test_evidence_shows_its_reason(reason: SandboxReason, evidence: Evidence) -> None:
    assert decide_reason(evidence) is reason


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (Evidence(gofer_died_first=True, sentry_exit_code=2), R.RUNTIME_FAILED),
        (Evidence(guest_misbehaved=True, sentry_signal=9), R.GUEST_FAILED),
        (Evidence(sentry_signal=9), R.RUNTIME_FAILED),
        (Evidence(), R.RUNTIME_FAILED),
        (Evidence(oom_kills=1, disk_full=True, panic_log=True), R.OUT_OF_MEMORY),
        (Evidence(oom_kills=1, guest_answered=False), R.OUT_OF_MEMORY),
        (Evidence(disk_full=True, guest_answered=False), R.NODE_DISK_FULL),
        (Evidence(panic_log=True, sentry_exit_code=2), R.RUNTIME_FAILED),
        (Evidence(same_boot=False, oom_kills=1), R.NODE_RESTARTED),
    ],
)
def test_the_more_certain_wins(evidence: Evidence, reason: SandboxReason) -> None:
    assert decide_reason(evidence) is reason


def test_every_reason_is_found_out_or_meant() -> None:
    meant = {row.reason for row in REASONS if row.evidence.startswith("intent")}
    assert set(SEEN) | meant | BY_API == set(SandboxReason)


@pytest.mark.parametrize("reason", SandboxReason)
def test_every_reason_ends_somewhere_and_can_be_said(reason: SandboxReason) -> None:
    assert ROW_OF[reason].ends_as in TERMINAL
    spec = SandboxSpec(
        image=ImageRef(id="img" + "a" * 20, reference="base", digest="sha256:" + "0" * 64), idle_timeout_seconds=10
    )
    sentence = describe(reason, spec)
    assert sentence.endswith(".")
    assert "{" not in sentence
