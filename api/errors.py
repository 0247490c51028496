"""Expected failures of the control plane. The codes are the contract's; here are the ones with several members.

ProblemError (contract)
├── SandboxNotFoundError     404 sandbox_not_found, for another project's too
├── SandboxEndedError        410 sandbox_ended, with how it ended
├── NameTakenError           409 name_taken, with who has it
└── NotImplementedProblem    501 not_implemented, `reason` names the feature
"""

from sandboxd.contract.problems import ProblemError


class SandboxNotFoundError(ProblemError):
    """No such sandbox, or not one this caller may see."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__("sandbox_not_found", f"There is no sandbox {sandbox_id[:64]!r}.", hint="GET /v1/sandboxes.")


class SandboxEndedError(ProblemError):
    """It existed and has ended."""

    def __init__(
        self, sandbox_id: str, *, state: str, reason: str | None, message: str | None, ended_at: str, hint: str
    ) -> None:
        super().__init__(
            "sandbox_ended",
            f"Sandbox {sandbox_id} is {state}: {(message or reason or 'ended').rstrip('.')}.",
            hint=hint,
            reason=reason,
            state=state,
            ended_at=ended_at,
            sandbox_id=sandbox_id,
        )


class NameTakenError(ProblemError):
    """Another live sandbox of the project has the name."""

    def __init__(self, name: str, sandbox_id: str) -> None:
        super().__init__(
            "name_taken",
            f"Sandbox {sandbox_id} is called {name!r}.",
            hint='Choose another name, or send "if_exists": "return".',
            sandbox_id=sandbox_id,
        )


class NotImplementedProblem(ProblemError):  # noqa: N818 - NotImplementedError is Python's own and means something else
    """Known by name and shape, not offered by this version."""

    def __init__(self, feature: str) -> None:
        super().__init__(
            "not_implemented",
            f"{feature} is not available in this version.",
            reason=feature,
            hint="Leave it out; GET /v1/me lists the features of this server.",
        )
