"""The manager: every runner of the node, and what may be asked of a sandbox by its id."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from sandboxd.contract.ids import RandomBytes, is_id, new_handle
from sandboxd.contract.messages import (
    EgressExplained,
    EgressReport,
    EnsureSandbox,
    ExplainOnNode,
    ImageRef,
    PatchSandbox,
    PutEgress,
    SandboxReport,
    SandboxSpec,
)
from sandboxd.contract.problems import ProblemError
from sandboxd.contract.ready import ReadyKey, ready_key
from sandboxd.contract.reasons import SandboxReason
from sandboxd.contract.states import NOT_READY, TERMINAL, SandboxState
from sandboxd.errors import (
    LedgerError,
    ended_problem,
    not_found,
    not_here,
    not_ready,
    shutting_down,
    stale_epoch,
    stale_generation,
    stopping,
)
from sandboxd.history.sampler import Sampled
from sandboxd.hooks.base import Parts, guest_token
from sandboxd.ledger.base import Contents, Phase, Record
from sandboxd.manager.admission import Admission
from sandboxd.manager.changes import Changes
from sandboxd.manager.live import Live
from sandboxd.manager.pool import Member, Pool, PoolPlan
from sandboxd.manager.tombstones import Tombstones
from sandboxd.processes.live import VERDICT_SECONDS, LiveSandbox
from sandboxd.runner.claim import Cold
from sandboxd.runner.egress import explain
from sandboxd.runner.life import Life
from sandboxd.runner.line import Line
from sandboxd.runner.runner import Runner
from sandboxd.runner.tools import Tools

_log = structlog.get_logger(__name__)

NOT_READY_SECONDS: Final = 30.0
"""How long a call on processes waits for its sandbox to be ready."""
MAX_CLAIMS: Final = 8
"""Claims under way at once."""
NO_RECORD: Final = frozenset({"image_not_found", "no_capacity"})
"""Refusals: nothing was started, so nothing is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest:
    """What a delete says."""

    generation: int | None
    """None: whatever the node has carried out so far; for operators."""
    epoch: int
    grace_seconds: float
    wait_seconds: float
    reason: SandboxReason = SandboxReason.REQUESTED


class Manager:
    """All sandboxes of one node. `opened` is entered once; everything else is for while it is open."""

    def __init__(
        self,
        tools: Callable[[Callable[[str], None]], Tools],
        admission: Admission,
        *,
        pool: PoolPlan,
        node_key: bytes,
        boot_id: str,
        random_bytes: RandomBytes = os.urandom,
        max_starts: int = 8,
        exit_seconds: float = 10,
    ) -> None:
        """`tools` is called with what is to be told of changed reports."""
        self.changes = Changes()
        self.tools = tools(self.changes.mark)
        self.admission = admission
        self.boot_id = boot_id
        self.epoch = 0
        self.runners: dict[str, Runner] = {}
        self.leftovers: dict[str, Runner] = {}
        """Ended sandboxes of which something could not be undone yet."""
        self.tombstones = Tombstones()
        self._node_key = node_key
        self._random_bytes = random_bytes
        self._line = Line(max_starts)
        self._claims = Line(MAX_CLAIMS)
        lines = (self._line, self._claims)
        self.pool = Pool(self.tools, admission, pool, lines=lines, new_parts=self._parts_of_nobody)
        self._exit_seconds = exit_seconds
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @asynccontextmanager
    async def opened(
        self, start_up: Callable[["Manager", Contents], Coroutine[Any, Any, None]]
    ) -> AsyncGenerator[None]:
        """Read the ledger, run `start_up`, and be open while inside. Leaving lets sandboxes run on.

        Starts and stops under way get a few seconds to finish; then they are left for the next agent to bury.
        """
        contents = await self.tools.ledger.open()
        self.epoch = contents.epoch
        try:
            async with self.tools.decisions.opened(), self.tools.keeper.opened(), asyncio.TaskGroup() as group:
                self._group = group
                try:
                    await start_up(self, contents)
                    self.tools.keeper.all_adopted()
                    self.pool.open(self._spawn)
                    yield
                    await self._let_finish()
                finally:
                    self._closing = True
                    self.abandon()
        finally:
            await self.tools.ledger.close()

    def abandon(self) -> None:
        """Leave every sandbox exactly as it is, as a crash of the agent would."""
        for task in self._tasks:
            task.cancel()

    async def _let_finish(self) -> None:
        self._closing = True
        moving = [
            runner.life
            for runner in self.runners.values()
            if runner.life.state in (SandboxState.STARTING, SandboxState.STOPPING)
        ]
        try:
            async with asyncio.timeout(self._exit_seconds):
                await self.pool.close()
                for life in moving:
                    await (life.settled if life.state is SandboxState.STARTING else life.over).wait()
        except TimeoutError:
            _log.warning("left under way", sandbox_ids=[life.id for life in moving if not life.settled.is_set()])

    async def ensure(self, sandbox_id: str, request: EnsureSandbox) -> SandboxReport:
        """Make it run, once, however often and however concurrently it is asked; returns when it does.

        Of an ended one the report is returned. Raises `stale_generation`, `no_capacity`, `impossible_resources`, or
        why it could not be started. The caller may vanish: the start goes on.
        """
        await self.require_epoch(request.epoch)
        runner = self.runners.get(sandbox_id)
        if runner is None:
            runner = self._begin(sandbox_id, request)
        else:
            runner.renew(request.generation)
            if runner.life.over.is_set():
                return self.report(runner.life)
        life = runner.life
        with life.awaited():
            await life.settled.wait()
        if life.start_problem is not None:
            raise life.start_problem
        if life.state in TERMINAL:
            raise ended_problem(self.report(life), life.record.spec.resources)
        return self.report(life)

    def get(self, sandbox_id: str) -> SandboxReport:
        """Report one sandbox; `sandbox_not_found`."""
        return self.report(self._known(sandbox_id).life)

    async def patch(self, sandbox_id: str, change: PatchSandbox) -> SandboxReport:
        """Move deadlines. Raises `sandbox_not_found`, and what Runner.patch raises."""
        await self.require_epoch(change.epoch)
        runner = self._known(sandbox_id)
        with _written():
            await runner.patch(change)
        return self.report(runner.life)

    async def change_egress(self, sandbox_id: str, change: PutEgress) -> EgressReport:
        """Change what it may reach; what has begun is finished, also if the caller has gone.

        Raises `sandbox_not_found`, and what Runner.change_egress raises.
        """
        await self.require_epoch(change.epoch)
        runner = self._known(sandbox_id)
        await self.ready(sandbox_id)
        answer: asyncio.Future[EgressReport] = asyncio.get_running_loop().create_future()
        credentials = change.credentials.credentials() if change.credentials else None
        self._spawn(_answered(runner.change_egress(change.egress, credentials), answer), f"egress {sandbox_id}")
        with _written():
            return await asyncio.shield(answer)

    def explain_egress(self, sandbox_id: str, asked: ExplainOnNode) -> EgressExplained:
        """Say what a policy decides about a destination on this node. Raises `sandbox_not_found`."""
        self._known(sandbox_id)
        return explain(asked, self.tools.network.platform)

    async def stop(self, sandbox_id: str, request: StopRequest) -> SandboxReport:
        """End it; returns when it has, or when `wait_seconds` are over. Any number at once join.

        Raises `stale_generation`, and `sandbox_not_found` for one that is not here, which from then on can only come
        to life by a generation that is not older.
        """
        await self.require_epoch(request.epoch)
        runner = self.runners.get(sandbox_id)
        if runner is None:
            self.tombstones.add(sandbox_id, request.generation or 0)
            raise not_found(sandbox_id)
        if request.generation is not None:
            runner.renew(request.generation)
        life = runner.life
        if life.state not in TERMINAL:
            runner.stop(request.reason, grace_seconds=request.grace_seconds)
        try:
            async with asyncio.timeout(request.wait_seconds):
                await life.over.wait()
        except TimeoutError:
            pass
        return self.report(life)

    @asynccontextmanager
    async def use(self, sandbox_id: str) -> AsyncGenerator[LiveSandbox]:
        """Enter a sandbox (`Sandboxes` of the processes package): being inside counts as activity."""
        life = await self.ready(sandbox_id)
        guest = life.parts.guest
        if guest is None:
            raise not_ready(sandbox_id, life.state)
        with life.activity.use():
            yield Live(life, guest, self.tools.keeper, self.tools.decisions)

    async def acknowledge(self, sandbox_ids: Iterable[str]) -> None:
        """Forget sandboxes whose end the api has recorded."""
        over = [runner for each in sandbox_ids if (runner := self.runners.get(each)) and runner.life.over.is_set()]
        if not over:
            return
        try:
            await self.tools.ledger.forget([runner.life.id for runner in over])
        except LedgerError as error:
            _log.error("ledger not written", error=str(error))
            return
        for runner in over:
            self.runners.pop(runner.life.id, None)
            self.tombstones.add(runner.life.id, runner.life.record.generation + 1)

    def bury(self, sandbox_ids: Iterable[str]) -> None:
        """End sandboxes of which the api says that they must not run any more."""
        for sandbox_id in sandbox_ids:
            runner = self.runners.get(sandbox_id)
            if runner is not None and runner.life.state not in TERMINAL:
                runner.stop(SandboxReason.REQUESTED, grace_seconds=0, message="The api no longer knows it.")

    async def meet_epoch(self, epoch: int) -> None:
        """Take note of the api's epoch, if it is newer."""
        if epoch > self.epoch:
            self.epoch = epoch
            with _written():
                await self.tools.ledger.raise_epoch(epoch)

    def report(self, life: Life) -> SandboxReport:
        """Report one sandbox, with its meters as they are now."""
        live = life.record.incarnation is not None and not life.over.is_set() and life.verdict is None
        return life.report(self.tools.runtime.usage(life.handle) if live else None)

    def sampled(self) -> list[Sampled]:
        """Return the sandboxes whose meters can be read."""
        return [self._sampled(runner.life) for runner in self.runners.values() if _is_metered(runner.life)]

    def sampled_one(self, sandbox_id: str) -> Sampled | None:
        """Return where one sandbox's meters are; None if it has none, or none any more."""
        runner = self.runners.get(sandbox_id)
        return self._sampled(runner.life) if runner is not None and _is_metered(runner.life) else None

    def _sampled(self, life: Life) -> Sampled:
        return life.sampled(self.tools.keeper.processes(life.id))

    def parts_of(self, record: Record, env: dict[str, str]) -> Parts:
        """Return what is known of a sandbox's parts from its record."""
        return Parts(
            sandbox_id=record.sandbox_id,
            handle=record.handle,
            spec=record.spec,
            env=env,
            token=guest_token(self._node_key, record.sandbox_id, record.nonce),
            wall_deadline=record.wall_deadline,
            slot_index=record.slot_index,
            incarnation=record.incarnation,
        )

    def take_on(self, runner: Runner, work: Coroutine[Any, Any, None]) -> None:
        """Have a runner's life lived. Its resources are counted until nothing of it is left."""
        self.runners[runner.life.id] = runner
        self._spawn(self._live(runner, work), f"runner {runner.life.id}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Have something done until the agent ends, or is done."""
        if self._group is None:
            work.close()
            msg = "the manager is not open"
            raise RuntimeError(msg)
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, runner: Runner, work: Coroutine[Any, Any, None]) -> None:
        life = runner.life
        try:
            await work
        except Exception:  # noqa: BLE001 - one runner's fault is not the others'
            # `end` never raises by its contract; should it, the sandbox stays counted and the next start buries it.
            _log.exception("runner broke", sandbox_id=life.id)
            return
        if life.leftover:
            self.leftovers[life.id] = runner
        else:
            self.admission.release(life.id)
        if life.start_problem is not None and life.start_problem.code in NO_RECORD:
            self.runners.pop(life.id, None)
            with _tolerated(life.id):
                await self.tools.ledger.forget([life.id])

    def _begin(self, sandbox_id: str, request: EnsureSandbox) -> Runner:
        if self._closing:
            raise shutting_down()
        known = self.tombstones.generation(sandbox_id)
        if request.generation < known:
            raise stale_generation(sandbox_id, given=request.generation, known=known)
        if sandbox_id in self.leftovers:
            raise ProblemError(
                "no_capacity", f"Remains of an earlier {sandbox_id} are still being removed.", retry_after_seconds=5
            )
        member = self._admit(sandbox_id, request.spec)
        record, parts = self._cold(sandbox_id, request)
        cold: Cold | None = None
        if member is not None:
            self.pool.keep(member)
            cold = Cold(nonce=record.nonce, parts=parts, turn=self._claims, discard=self.pool.discard)
            record, parts = self._claimed(record, parts, member)
        life = Life(record, parts, self.tools.clock, SandboxState.STARTING)
        runner = Runner(life, self.tools)
        self.take_on(runner, runner.run_new(self._line, request.deadline_seconds, cold))
        return runner

    def _admit(self, sandbox_id: str, spec: SandboxSpec) -> Member | None:
        """Find room, and a ready sandbox to claim if there is one; the pool gives way where it must."""
        member = self.pool.take(ready_key(spec.image.id, spec.resources))
        try:
            self.admission.admit(sandbox_id, spec.resources)
        except ProblemError:
            if member is not None:
                self.pool.put_back(member)
            raise
        while self.admission.crowded() and self.pool.give_way():
            pass
        return member

    def _cold(self, sandbox_id: str, request: EnsureSandbox) -> tuple[Record, Parts]:
        record = Record(
            sandbox_id=sandbox_id,
            handle=sandbox_id,
            generation=request.generation,
            spec=_without_env(request.spec),
            phase=Phase.ADMITTED,
            boot_id=self.boot_id,
            nonce=self._random_bytes(16).hex(),
            last_active=self.tools.clock.boottime(),
        )
        parts = self.parts_of(record, dict(request.spec.env))
        parts.secret_env = dict(request.spec.secret_env)
        parts.credentials = request.credentials.credentials() if request.credentials else None
        if request.spec.timeout_seconds is not None:
            # Until the guest is initialised; generous, so that a slow start does not cost running time.
            parts.wall_deadline = record.last_active + request.deadline_seconds + request.spec.timeout_seconds
        return record, parts

    def _claimed(self, record: Record, cold: Parts, member: Member) -> tuple[Record, Parts]:
        """Return the record and parts of a sandbox that claims a ready one, with a token nobody has had yet."""
        ready = member.parts
        nonce = self._random_bytes(16).hex()
        record = replace(
            record,
            handle=ready.handle,
            nonce=nonce,
            slot_index=ready.slot_index,
            incarnation=ready.incarnation,
            address=ready.slot.address if ready.slot else None,
        )
        parts = replace(
            ready,
            sandbox_id=record.sandbox_id,
            spec=record.spec,
            env=dict(cold.env),
            secret_env=dict(cold.secret_env),
            credentials=cold.credentials,
            token=guest_token(self._node_key, record.sandbox_id, nonce),
            wall_deadline=cold.wall_deadline,
        )
        return record, parts

    def _parts_of_nobody(self, key: ReadyKey) -> Parts:
        return self._parts_of(
            SandboxSpec(
                image=ImageRef(id=key.image_id, reference=key.image_id, digest=""),
                user="0",
                cwd="/",
                resources=key.resources,
                timeout_seconds=None,
            )
        )

    def _parts_of(self, spec: SandboxSpec) -> Parts:
        """Return the parts of a sandbox without a row, under a handle and a token of its own."""
        handle = new_handle(self._random_bytes)
        return Parts(
            sandbox_id=handle,
            handle=handle,
            spec=spec,
            env={},
            token=guest_token(self._node_key, handle, self._random_bytes(16).hex()),
            wall_deadline=None,
        )

    @asynccontextmanager
    async def parts_in_use(self, sandbox_id: str) -> AsyncGenerator[Parts]:
        """Enter a live sandbox's parts; being inside counts as activity. Raises what `use` raises."""
        life = await self.ready(sandbox_id)
        with life.activity.use():
            yield life.parts

    def nobody(self, spec: SandboxSpec) -> Parts:
        """Promise the resources of a sandbox that is nobody's and has no row; `no_capacity`, `impossible_resources`.

        Whoever asked makes it by the hooks, and has it undone by `bury_nobody`, whatever came of it.
        """
        if self._closing:
            raise shutting_down()
        parts = self._parts_of(spec)
        self.admission.admit(parts.handle, spec.resources)
        while self.admission.crowded() and self.pool.give_way():
            pass
        return parts

    def bury_nobody(self, parts: Parts, done: asyncio.Event) -> None:
        """Undo such a sandbox, however little there is of it; goes on when nobody waits for `done` any more."""

        async def bury() -> None:
            try:
                await self.pool.bury(parts)
            finally:
                done.set()

        self._spawn(bury(), f"bury {parts.handle}")

    def _known(self, sandbox_id: str) -> Runner:
        runner = self.runners.get(sandbox_id)
        if runner is None:
            raise not_found(sandbox_id)
        return runner

    async def ready(self, sandbox_id: str) -> Life:
        """Return a sandbox that runs; waits for one that is on its way. Raises as `Sandboxes.use` does."""
        if not is_id("sbx", sandbox_id):
            raise not_found(sandbox_id)
        runner = self.runners.get(sandbox_id)
        if runner is None:
            raise not_here(sandbox_id)
        life = runner.life
        if life.state in NOT_READY:
            try:
                async with asyncio.timeout(NOT_READY_SECONDS):
                    await life.settled.wait()
            except TimeoutError:
                raise not_ready(sandbox_id, life.state) from None
        if life.cause is not None and life.cause.intent is None:
            await life.ended.wait(VERDICT_SECONDS)
        if life.verdict is not None or life.state in TERMINAL:
            report = self.report(life) if life.verdict is None else life.last_word()
            raise ended_problem(report, life.record.spec.resources)
        if life.cause is not None:
            raise stopping(sandbox_id)
        return life

    async def require_epoch(self, epoch: int) -> None:
        """Refuse an api that has been replaced: `stale_generation`."""
        if epoch < self.epoch:
            raise stale_epoch(given=epoch, known=self.epoch)
        await self.meet_epoch(epoch)


async def _answered(work: Coroutine[Any, Any, EgressReport], answer: asyncio.Future[EgressReport]) -> None:
    """Do it, and say how it went to whoever still listens."""
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - it is the caller's
        if not answer.cancelled():
            answer.set_exception(error)
            answer.exception()  # heard, even if nobody waits any more
    except BaseException:
        answer.cancel()
        raise
    else:
        if not answer.cancelled():
            answer.set_result(result)


@contextmanager
def _written() -> Generator[None]:
    """Say to a caller that its change could not be written down, and so was not made."""
    try:
        yield
    except LedgerError as error:
        _log.error("ledger not written", error=str(error))
        raise ProblemError("disk_full", "The node cannot write its ledger.", scope="node") from error


@contextmanager
def _tolerated(sandbox_id: str) -> Generator[None]:
    """Go on without the ledger: the next start finds a record of nothing and drops it."""
    try:
        yield
    except LedgerError as error:
        _log.error("ledger not written", sandbox_id=sandbox_id, error=str(error))


def _is_metered(life: Life) -> bool:
    return life.record.phase is Phase.RUNNING and life.verdict is None and not life.over.is_set()


def _without_env(spec: SandboxSpec) -> SandboxSpec:
    return spec.model_copy(update={"env": {}, "secret_env": {}}) if spec.env or spec.secret_env else spec
