"""A change of what a running sandbox may reach: written down, then true, then answered."""

import structlog

from netpolicy.credentials import Credentials
from netpolicy.platform import Platform
from netpolicy.rules import RuleRefusedError
from netpolicy.verdict import parse_destination, verdict
from sandboxd.contract.messages import EgressExplained, EgressReport, EgressSpec, ExplainOnNode, explained
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.validation import invalid_field
from sandboxd.errors import stale_generation
from sandboxd.guest_client.base import GuestUnreachableError
from sandboxd.hooks.trust import install
from sandboxd.network.base import NetworkError
from sandboxd.runner.life import Life
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)


async def change_egress(
    life: Life, tools: Tools, egress: EgressSpec, credentials: Credentials | None = None
) -> EgressReport:
    """Make a policy the sandbox's; returns when every connection that it forbids is dead. Repeating it is harmless.

    Without credentials, those go on that are known; a policy that injects nothing has none.
    Written first, so that a restart in between makes it true. Raises `stale_generation`, LedgerError, and
    `egress_not_applied`: then the sandbox reaches nothing until a change succeeds. A caller that may be cancelled
    has this done by somebody who is not.
    """
    async with life.egress_turn:
        parts = life.parts
        known = life.record.spec.egress
        if egress.generation < known.generation or (egress.generation == known.generation and egress != known):
            raise stale_generation(life.id, given=egress.generation, known=known.generation)
        if parts.slot is None:
            raise _not_applied(life, "it has no network")
        spec = life.record.spec.model_copy(update={"egress": egress})
        await tools.ledger.put(life.write(spec=spec))
        parts.spec = spec
        parts.credentials = (credentials or parts.credentials) if egress.inject else None
        try:
            closed = await tools.network.apply_egress(parts.slot, egress, parts.credentials)
        except NetworkError as error:
            parts.egress_closed = True
            _log.error("egress not applied", sandbox_id=life.id, error=str(error))
            raise _not_applied(life, "the node's network refused it") from error
        except BaseException:
            parts.egress_closed = True
            raise
        finally:
            tools.changed(life.id)
        parts.egress_applied, parts.egress_closed = egress.generation, False
        await _have_trusted(life, tools)
        return EgressReport(
            generation=egress.generation,
            applied_generation=egress.generation,
            state="applied",
            closed_connections=closed,
        )


async def _have_trusted(life: Life, tools: Tools) -> None:
    try:
        await install(life.parts, tools.authorities)
    except GuestUnreachableError as error:
        life.report_guest(error)


def explain(asked: ExplainOnNode, platform: Platform) -> EgressExplained:
    """Say what a policy decides about a destination on a node with these denials. Raises `invalid_request`."""
    try:
        destination = parse_destination(asked.destination)
    except RuleRefusedError as error:
        raise invalid_field("/destination", error.code, str(error)) from error
    return explained(verdict(asked.egress.policy(), destination, platform))


def _not_applied(life: Life, why: str) -> ProblemError:
    return ProblemError(
        "egress_not_applied",
        f"The egress policy of sandbox {life.id} could not be applied: {why}. It reaches nothing now.",
        sandbox_id=life.id,
        retry_after_seconds=1,
    )
