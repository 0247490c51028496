"""What a sandbox may reach: read, changed on its node, explained."""

from dataclasses import dataclass
from typing import Any, Final

from api.services import sandboxes, secrets
from api.services.identity import Caller
from api.services.node_client import NodeProblemError, NodeUnreachableError
from api.services.platform import Platform
from api.services.policies import (
    ChangedEgress,
    Egress,
    EgressExplanation,
    EgressPolicy,
    ExplainEgress,
    ShownPolicy,
    hint_of,
)
from api.services.views import time_of
from api.store import egress as store
from api.store import sandboxes as rows
from api.store.db import Connection
from api.store.tables import Sandbox
from netpolicy.policy import Policy, parse_policy
from netpolicy.rules import RuleRefusedError
from netpolicy.verdict import parse_destination, verdict
from sandboxd.contract.messages import EgressExplained, EgressReport, EgressSpec, ExplainOnNode, PutEgress, explained
from sandboxd.contract.states import SandboxState
from sandboxd.contract.validation import invalid_field

_RUNS: Final = frozenset({SandboxState.RUNNING.value})


@dataclass(frozen=True, slots=True)
class Changed:
    """A policy that is in force, and what that has ended."""

    sandbox: Sandbox
    closed_connections: int


async def get(platform: Platform, caller: Caller, sandbox_id: str) -> Sandbox:
    """Return the sandbox whose policy it is, an ended one too."""
    return await platform.database.read(rows.get, caller.project_id, sandbox_id)


async def put(
    platform: Platform, caller: Caller, sandbox_id: str, policy: EgressPolicy, match: frozenset[int] | None
) -> Changed:
    """Make a policy the sandbox's. Returns when every connection that it forbids is dead.

    Recorded first: should this program end in between, its next start has the node make it true. Raises
    `egress_not_applied` where the node could not; then the sandbox reaches nothing until a change succeeds.
    """
    spec = policy.spec()
    secrets.require_for_policy(caller, spec)
    sandbox = await sandboxes.changeable(platform, caller, sandbox_id)
    sandboxes.reachable(platform, sandbox)
    sandbox = await platform.database.write(_ask, caller.project_id, sandbox_id, spec, match, platform.sources.now_us())
    platform.changes.notify(sandbox_id)
    if sandbox.egress_applied_generation == sandbox.egress_generation and not sandbox.egress_closed:
        return Changed(sandbox, 0)
    return await apply(platform, sandbox)


def _ask(
    connection: Connection,
    project_id: str,
    sandbox_id: str,
    spec: EgressSpec,
    match: frozenset[int] | None,
    now_us: int,
) -> Sandbox:
    wanted = spec.model_dump(mode="json", exclude={"generation"})
    asked = store.ask(connection, project_id, sandbox_id, policy=wanted, match=match, now_us=now_us)
    secrets.use_in_policy(connection, project_id, sandbox_id, spec, ())
    return asked


async def apply(platform: Platform, sandbox: Sandbox) -> Changed:
    """Have the node make the recorded policy true, with what it puts into requests, and record that."""
    member = sandboxes.reachable(platform, sandbox)
    egress = EgressSpec.model_validate(sandbox.spec["egress"] | {"generation": sandbox.egress_generation})
    body = PutEgress(
        epoch=member.epoch,
        egress=egress,
        credentials=await secrets.credentials_of(platform, sandbox.project_id, egress),
    )
    try:
        report = await platform.nodes.put_egress(member.address, sandbox.id, body)
    except NodeProblemError as error:
        if error.code == "egress_not_applied":
            await _note(platform, sandbox, None, closed=True)
        raise error.problem() from error
    except NodeUnreachableError as error:
        raise sandboxes.node_unreachable(sandbox) from error
    return await _applied(platform, sandbox, report)


async def _applied(platform: Platform, sandbox: Sandbox, report: EgressReport) -> Changed:
    noted = await _note(platform, sandbox, report.applied_generation, closed=False)
    return Changed(noted or sandbox, report.closed_connections)


async def _note(platform: Platform, sandbox: Sandbox, applied: int | None, *, closed: bool) -> Sandbox | None:
    noted = await platform.database.write(
        store.note_any_project, sandbox.id, applied=applied, closed=closed, now_us=platform.sources.now_us()
    )
    platform.changes.notify(sandbox.id)
    return noted


async def explain(platform: Platform, caller: Caller, sandbox_id: str, asked: ExplainEgress) -> EgressExplanation:
    """Say what a policy decides about a destination; where the sandbox runs, as its node would. Changes nothing."""
    try:
        destination = parse_destination(asked.destination)
    except RuleRefusedError as error:
        raise invalid_field("/destination", error.code, str(error)) from error
    sandbox = await get(platform, caller, sandbox_id)
    spec = (
        EgressSpec.model_validate(sandbox.spec["egress"]) if asked.policy is None else asked.policy.spec(at=("policy",))
    )
    member = platform.fleet.members.get(sandbox.node_id)
    if sandbox.state in _RUNS and member is not None:
        body = ExplainOnNode(destination=asked.destination, egress=spec)
        try:
            return _explanation(await platform.nodes.explain_egress(member.address, sandbox.id, body))
        except (NodeProblemError, NodeUnreachableError):
            pass  # the policy is known here as well; only the node's own addresses and exceptions are not
    return _explanation(explained(verdict(spec.policy(), destination)))


def _explanation(said: EgressExplained) -> EgressExplanation:
    return EgressExplanation(
        verdict=said.verdict, source=said.source, rule=said.rule, reason=said.reason, hint=hint_of(said.reason)
    )


def view(sandbox: Sandbox) -> Egress:
    """Render a sandbox's policy."""
    return Egress.model_construct(**_members(sandbox))


def changed_view(changed: Changed) -> ChangedEgress:
    """Render a policy just put in force."""
    return ChangedEgress.model_construct(**_members(changed.sandbox), closed_connections=changed.closed_connections)


def _members(sandbox: Sandbox) -> dict[str, Any]:
    policy: Policy = parse_policy(sandbox.spec["egress"])
    applied = sandbox.egress_applied_generation
    state = "closed" if sandbox.egress_closed else "applied" if applied == sandbox.egress_generation else "applying"
    return {
        "policy": ShownPolicy.model_validate(policy.to_json()),
        "generation": sandbox.egress_generation,
        "applied_generation": applied,
        "applied_at": time_of(sandbox.egress_applied_at),
        "state": state,
    }
