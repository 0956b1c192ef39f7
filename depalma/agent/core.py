"""The decisions of an agent: frames and events in, actions out. [pure]

Rules that hold whatever the order of events:
- an attempt is started at most once here, and reported at most once per outcome, again and again until committed;
- an order of an older term than the highest one seen changes nothing;
- past the lease nothing is believed any more: everything is killed, and nothing of that incarnation is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from depalma.agent.events import (
    AnyAction,
    AnyEvent,
    ApplyCode,
    Attempt,
    BeatSent,
    CodeDiffers,
    CodeReached,
    CodeRepaired,
    Connected,
    CutOff,
    Disconnected,
    Ended,
    EndForkServers,
    Ending,
    Evicted,
    Job,
    KeepReports,
    LeaseLost,
    Leave,
    Outdone,
    OwnerStands,
    Prepared,
    Reconnect,
    Rejoined,
    RenewLease,
    ResetCode,
    SendReports,
    Stopping,
    Tick,
    Unprepared,
    Uploaded,
)
from depalma.agent.execution import Execution
from depalma.agent.lanes import Lane
from depalma.model import AttemptRef, HostFacts, Report
from depalma.protocol import (
    PROTOCOL_VERSION,
    Assign,
    CodeLog,
    Forget,
    HeartbeatAnswer,
    Hello,
    JobTemplate,
    Kill,
    Refused,
    ReportsCommitted,
    Suspended,
    Welcome,
)

#: Job templates kept although nothing of the job is here: the leader sends each once a connection.
_IDLE_JOBS = 10_000
#: Attempts remembered after they were committed, so that a repeated order does not start them again.
_REMEMBERED = 20_000


class AgentCore(Execution):
    """What the agent knows, and its reactions. `handle` is the only way to change it."""

    def __init__(self, *, slots: int, python: str, incarnation: str) -> None:
        super().__init__(slots)
        self._own_slots = slots  #: what holds unless the cluster says otherwise
        self.python = python  #: `3.11`
        self.incarnation = incarnation  #: empty between a cut-off and the rejoin
        self.jobs: dict[int, Job] = {}
        self.pending: dict[AttemptRef, Report] = {}  #: ended and not known to be committed
        self.term = 0  #: the highest one seen
        self.connected = False  #: a leader has accepted us
        self.lease_s = 0.0
        self.lease_until = 0.0  #: 0 = no lease: nothing runs
        self.code_index = 0
        self._remembered: dict[AttemptRef, None] = {}
        self._trees: dict[int, str] = {0: ""}
        self._hello_s = 0.0
        self._beats: dict[int, float] = {}
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            **self._execution_handlers(),
            Connected: self._on_connected,
            Disconnected: self._on_disconnected,
            BeatSent: self._on_beat_sent,
            Ended: self._on_ended,
            Uploaded: self._on_uploaded,
            Prepared: self._on_prepared,
            Unprepared: self._on_unprepared,
            Evicted: self._on_evicted,
            CodeReached: self._on_code_reached,
            CodeDiffers: self._on_code_differs,
            CodeRepaired: self._on_code_repaired,
            Outdone: self._on_outdone,
            LeaseLost: self._on_lease_lost,
            Rejoined: self._on_rejoined,
            Stopping: self._on_stopping,
            Ending: self._on_ending,
            Tick: self._on_tick,
            Welcome: self._on_welcome,
            Refused: self._on_refused,
            HeartbeatAnswer: self._on_beat_answer,
            Assign: self._on_assign,
            Kill: self._on_kill,
            Forget: self._on_forget,
            Suspended: self._on_suspended,
            ReportsCommitted: self._on_committed,
            CodeLog: self._on_code_log,
        }

    def handle(self, event: AnyEvent, now: float) -> list[AnyAction]:
        """Returns what is to be done, in this order. `now`: seconds of CLOCK_BOOTTIME, never earlier than before."""
        self.out = out = list[AnyAction]()
        if self.lease_until and now >= self.lease_until:
            self._cut_off(f"no leader was heard for {self.lease_s:g} s", must_rejoin=False)
        if self.incarnation or type(event) in (Rejoined, OwnerStands, Evicted):
            self._handlers[type(event)](event, now)
        return out

    def hello(self, host: str, facts: HostFacts) -> Hello:
        """Returns the first frame of a connection."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            host=host,
            incarnation=self.incarnation,
            facts=facts,
            code_index=self.code_index,
            running=tuple(self.attempts),
            unreported=tuple(self.pending),
            tells_history=True,
            suspends_jobs=True,
            takes_visits=True,
        )

    @property
    def free_slots(self) -> int:
        """Slots that nothing runs on and nothing waits for."""
        return max(0, int(self.lanes.slots - self.lanes.load) - len(self.lanes.waiting))

    def uses_blob(self, digest: str) -> bool:
        """Returns whether an attempt that is here may still read the blob."""
        return any(
            digest in a.job.needs
            or digest == a.argument.argument_blob
            or (a.job.spec.inputs is not None and digest == a.job.spec.inputs.digest)
            for a in self.attempts.values()
        )

    # ------------------------------------------------------------ leader and lease

    def _on_connected(self, event: Connected, now: float) -> None:
        self._hello_s = event.sent_s
        self._beats.clear()

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        self.connected = False
        self._beats.clear()
        for attempt in self.attempts.values():
            attempt.announced = False  # the next leader may not have heard
        # The next connection brings the templates again.
        self.jobs = {number: job for number, job in self.jobs.items() if job.is_live}

    def _on_welcome(self, frame: Welcome, now: float) -> None:
        if frame.term < self.term:
            self.out.append(Reconnect(f"{frame.leader} leads term {frame.term}, but term {self.term} was seen"))
            return
        self.term = frame.term
        self.connected = True
        self.lease_s = frame.lease_s
        self._renew(self._hello_s + frame.lease_s)
        if self.pending:
            self.out.append(SendReports(tuple(self.pending.values())))
        slots = frame.slots or self._own_slots
        if slots != self.lanes.slots:
            self.lanes.resize(slots)
            self._flush(now)

    def _on_refused(self, frame: Refused, now: float) -> None:
        if frame.restart_incarnation:
            self._cut_off(f"the leader asks for a new start: {frame.reason}", must_rejoin=True)
        elif frame.stop:
            self._clear()
            self.out.append(Leave(frame.reason))
        else:
            self.out.append(Reconnect(f"refused: {frame.reason}"))

    def _on_beat_sent(self, event: BeatSent, now: float) -> None:
        self._beats[event.sequence] = event.sent_s
        while len(self._beats) > 100:
            del self._beats[next(iter(self._beats))]

    def _on_beat_answer(self, frame: HeartbeatAnswer, now: float) -> None:
        # Our own note of the time counts, not the echo: an answer renews from when its question was sent.
        sent_s = self._beats.pop(frame.sequence, None)
        if sent_s is None or self._stale(frame.term):
            return
        self._renew(sent_s + self.lease_s)

    def _renew(self, until_s: float) -> None:
        if until_s > self.lease_until:
            self.lease_until = until_s
            self.out.append(RenewLease(until_s))

    def _on_lease_lost(self, event: LeaseLost, now: float) -> None:
        self._cut_off(event.reason, must_rejoin=False)

    def _cut_off(self, reason: str, *, must_rejoin: bool) -> None:
        self._clear()
        self.out.append(CutOff(reason, must_rejoin))

    def _clear(self) -> None:
        """Forgets this incarnation: its attempts die and its reports are void."""
        self.forget_execution()
        self.jobs.clear()
        self.pending.clear()
        self._remembered.clear()
        self._beats.clear()
        self.lease_until = 0.0
        self.connected = False
        self.incarnation = ""

    def _on_rejoined(self, event: Rejoined, now: float) -> None:
        self.incarnation = event.incarnation

    def _stale(self, term: int) -> bool:
        """Returns whether an order is of an older term; otherwise notes the term."""
        if term < self.term or not self.connected:
            return True
        self.term = term
        return False

    # ------------------------------------------------------------ orders

    def _on_assign(self, frame: Assign, now: float) -> None:
        if self._stale(frame.term):
            return
        for template in frame.jobs:
            self._learn_job(template)
        for argument in frame.tasks:
            ref = (argument.job, argument.task, argument.attempt)
            if ref in self.attempts or ref in self.pending or ref in self._remembered:
                continue
            job = self.jobs.get(argument.job)
            if job is None:
                self.out.append(Reconnect(f"task {ref[0]}.{ref[1]} came without its job"))
                break
            attempt = self.attempts[ref] = Attempt(ref, job.as_alternative(argument.alternative), argument, now)
            attempt.job.live += 1
            if job.problem:
                self.report_unstarted(attempt, "failed", job.problem)
            elif closed := self.closed_to(job):
                self.report_unstarted(attempt, "returned", closed)
            else:
                self._await_needs(attempt)
        self._flush(now)

    def _learn_job(self, template: JobTemplate) -> None:
        if template.job in self.jobs:
            return
        spec = template.spec
        problem = ""
        if spec.kind == "function" and spec.python and spec.python != self.python:
            problem = f"HostMismatch: made by Python {spec.python}, this host runs Python {self.python}"
        needs = []
        if template.code_index > 0:
            needs.append(f"tree:{template.code_index}")
        if spec.kind == "function" and spec.function_pickle is not None and spec.function_pickle.digest:
            needs.append(spec.function_pickle.digest)
        if spec.stdin is not None and spec.stdin.digest:
            needs.append(spec.stdin.digest)
        self.jobs[template.job] = Job(template, tuple(dict.fromkeys(needs)), problem)
        if len(self.jobs) > _IDLE_JOBS:
            for number in [number for number, job in self.jobs.items() if not job.is_live][: _IDLE_JOBS // 10]:
                del self.jobs[number]

    def _await_needs(self, attempt: Attempt) -> None:
        blob = attempt.argument.argument_blob
        for need in attempt.job.needs if not blob else dict.fromkeys((*attempt.job.needs, blob)):
            self.await_need(need, attempt)
        inputs = attempt.job.spec.inputs
        if inputs is not None:
            self.await_need(f"stage:{'.'.join(map(str, attempt.ref))}:{inputs.digest}", attempt)
        if not attempt.missing:
            self._ready(attempt)

    def _ready(self, attempt: Attempt) -> None:
        job = attempt.job
        expected = job.template.tree_digest
        if expected and self._trees.get(job.code_index, expected) != expected:
            text = f"the code at index {job.code_index} is that of another log ({self._trees[job.code_index][:12]})"
            self.report_unstarted(attempt, "returned", f"{text}, expected {expected[:12]}")
            self._reset_code(text)
            return
        attempt.state = "waiting"
        self.lanes.waiting.append(attempt)

    def _reset_code(self, reason: str) -> None:
        """Begins at code index 0: this folder was filled from another cluster's log."""
        if self.code_index:
            self.code_index = 0
            self._trees = {0: ""}
            self.needs = {need: who for need, who in self.needs.items() if who is not None or need[:5] != "tree:"}
            self.out += [ResetCode(), Reconnect(reason)]

    def _on_kill(self, frame: Kill, now: float) -> None:
        if self._stale(frame.term):
            return
        for ref in frame.tasks:
            attempt = self.attempts.get(ref)
            if attempt is not None:
                self.end(attempt, frame.outcome, frame.reason)
            elif ref not in self.pending and ref not in self._remembered:
                # It never came here. Say so, and unless it is free to come again it never will.
                if frame.outcome != "returned":
                    self._remember(ref)
                self.ready_reports.append(Report(*ref, outcome=frame.outcome, error=frame.reason))
        self._flush(now)

    def _on_forget(self, frame: Forget, now: float) -> None:
        if self._stale(frame.term):
            return
        for ref in frame.tasks:
            self._remember(ref)
            self.pending.pop(ref, None)
            attempt = self.attempts.get(ref)
            if attempt is not None:
                self.end(attempt, "forget", "")
        self._flush(now)

    def _on_suspended(self, frame: Suspended, now: float) -> None:
        if not self._stale(frame.term):
            self.suspend_jobs(frozenset(frame.jobs))
            self._flush(now)

    def _on_code_log(self, frame: CodeLog, now: float) -> None:
        if not self._stale(frame.term):
            self.out.append(ApplyCode(frame.entries, frame.again))

    # ------------------------------------------------------------ what was needed

    def _on_prepared(self, event: Prepared, now: float) -> None:
        if event.need.startswith("tree:"):
            self._trees[int(event.need[5:])] = event.digest
        for attempt in self.need_met(event.need):
            self._ready(attempt)
        self._flush(now)

    def _on_unprepared(self, event: Unprepared, now: float) -> None:
        self.need_failed(event.need, event.error, for_good=event.for_good)
        self._flush(now)

    def _on_evicted(self, event: Evicted, now: float) -> None:
        if self.needs.get(event.need, ()) is None:
            del self.needs[event.need]

    def _on_code_reached(self, event: CodeReached, now: float) -> None:
        self.code_index = event.index

    def _on_code_differs(self, event: CodeDiffers, now: float) -> None:
        self._reset_code(event.reason)

    def _on_code_repaired(self, event: CodeRepaired, now: float) -> None:
        self.out.append(EndForkServers(event.indices))
        self._end_when_idle(lane for lane in self.lanes.lanes.values() if lane.code_index in event.indices)

    def _on_outdone(self, event: Outdone, now: float) -> None:
        self._end_when_idle(lane for lane in self.lanes.lanes.values() if lane.id in event.workers)

    def _end_when_idle(self, lanes: Iterable[Lane]) -> None:
        for lane in [lane for lane in lanes if lane.is_worker]:
            lane.stale = True
            if not lane.queue:
                self.lanes.stop(lane, 0.0, self.out)

    # ------------------------------------------------------------ ends and reports

    def _on_ended(self, event: Ended, now: float) -> None:
        for report in event.reports:
            ref = (report.job, report.task, report.attempt)
            attempt = self.attempts.get(ref)
            if attempt is not None and attempt.state == "sent":
                self.finished(attempt, report, now)
        self._flush(now)

    def _on_uploaded(self, event: Uploaded, now: float) -> None:
        attempt = self.attempts.get(event.attempt)
        if attempt is not None and attempt.state == "uploading":
            report = self.uploading.pop(event.attempt)
            self.early.pop(event.attempt, None)
            if event.error:
                report = msgspec.structs.replace(
                    report, outcome="failed", error=event.error, error_code=event.error_code, result=None
                )
            elif event.outputs is not None:
                report = msgspec.structs.replace(report, outputs=event.outputs)
            if event.tail is not None:
                report = msgspec.structs.replace(report, tail=event.tail)
            self.ready_reports.append(report)
            self.drop(attempt)
            self._flush(now)

    def _on_committed(self, frame: ReportsCommitted, now: float) -> None:
        for ref in frame.tasks:
            report = self.pending.pop(ref, None)
            if report is not None and report.outcome != "returned":
                self._remember(ref)

    def _remember(self, ref: AttemptRef) -> None:
        self._remembered[ref] = None
        while len(self._remembered) > _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _on_stopping(self, event: Stopping, now: float) -> None:
        self.stopping = True
        for attempt in list(self.attempts.values()):
            if attempt.state in ("preparing", "waiting"):
                self.end(attempt, "returned", self.closed)
        self._flush(now)

    def _on_ending(self, event: Ending, now: float) -> None:
        self.leave_behind("the agent was stopped")

    def _on_tick(self, event: Tick, now: float) -> None:
        self.look(now, announce=self.connected)
        self._flush(now)

    def _flush(self, now: float) -> None:
        """Ends every event: removes what was ended, starts what can start, keeps and sends what is to be reported."""
        self.settle(now)
        if not self.closed:
            self.lanes.dispatch(now, self.out)
        if not self.ready_reports:
            return
        reports = []
        for report in self.ready_reports:
            self.pending[(report.job, report.task, report.attempt)] = report
            reports.append(report)
        self.ready_reports = []
        self.out.append(KeepReports(tuple(reports), send=self.connected))
