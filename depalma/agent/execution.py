"""The attempts on this host and how each comes to its end: the half of the core that knows no leader. [pure]"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from depalma.agent.events import (
    Announce,
    AnyAction,
    Attempt,
    Job,
    KeepReports,
    Lower,
    OwnerStands,
    Prepare,
    Recall,
    Recalled,
    Resume,
    StopCommand,
    Suspend,
    Upload,
    WorkerEnded,
    WorkerReady,
)
from depalma.agent.lanes import Lane, Lanes, learn_duration
from depalma.model import AttemptRef, Payload, Report
from depalma.tails import not_kept

#: Attempts that run longer than this are announced.
ANNOUNCE_AFTER_S = 0.2
#: Attempts that wait longer than this while every slot is busy go back to the leader.
GIVE_BACK_AFTER_S = 2.0
#: What was handed ahead to a worker is taken back when the task before it takes longer than this.
STALLED_AFTER_S = 0.1
#: A worker that is not ready by then is replaced.
START_WITHIN_S = 60.0
#: Workers of one code index that may die before they are ready, until a task pays for it.
START_FAILURES = 3
#: Why a lane stands still: the owner of the machine, or the job of its task.
OWNER, JOB = "owner", "job"
JOB_SUSPENDED = "its job is suspended"
#: Why an attempt went back that had waited for too long.
NO_SLOT = "no slot became free"
#: What an outcome that we brought about is called by programs.
_CODES = {"timed_out": "time_limit"}
#: The code of what was killed while it hung in the kernel, or had not begun: the words of stuck.py are told, too.
STUCK = "stuck"
_UNTIMELY = not_kept("its agent ended before it had handed it over")


class Execution:
    """Attempts, needs and lanes. Reports collect in `ready_reports`, actions in `out`."""

    def __init__(self, slots: int) -> None:
        self.lanes = Lanes(slots)
        self.attempts: dict[AttemptRef, Attempt] = {}
        self.needs: dict[str, list[Attempt] | None] = {}  #: who waits for a blob or a tree; None = it is here
        self.uploading: dict[AttemptRef, Report] = {}
        self.early: dict[AttemptRef, Report] = {}  #: of these, what is on disk in case that we do not come to report
        self.ready_reports: list[Report] = []
        self.out: list[AnyAction] = []
        self.stopping = False
        self.owner = OwnerStands()
        self.suspended: frozenset[int] = frozenset()  #: jobs of which nothing may go on
        self._start_failures: dict[int, int] = {}
        self._unqueued: list[Attempt] = []
        self._standing: dict[int, AttemptRef] = {}  #: by lane, what stands still because its job is suspended

    def _execution_handlers(self) -> dict[type, Callable[[Any, float], None]]:
        return {
            Recalled: self._on_recalled,
            WorkerReady: self._on_worker_ready,
            WorkerEnded: self._on_worker_ended,
            OwnerStands: self._on_owner,
        }

    @property
    def closed(self) -> str:
        """Returns why nothing may start here; empty when it may."""
        if self.stopping:
            return "the agent is stopping"
        return f"its owner uses the machine: {self.owner.reason}" if self.owner.reason else ""

    def closed_to(self, job: Job) -> str:
        """Returns why nothing of a job may start here; empty when it may."""
        return self.closed or (JOB_SUSPENDED if job.id in self.suspended else "")

    def forget_execution(self) -> None:
        """Forgets every attempt and worker: they are killed by other means."""
        self.lanes = Lanes(self.lanes.slots)
        self.attempts.clear()
        self.uploading.clear()
        self.early.clear()
        self.ready_reports.clear()
        self._start_failures.clear()
        self._unqueued.clear()
        self._standing = {}
        self.needs = {need: None for need, waiting in self.needs.items() if waiting is None}

    def _flush(self, now: float) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------ ends

    def report_unstarted(self, attempt: Attempt, outcome: str, reason: str, code: str = "") -> None:
        """Ends an attempt that never started."""
        self.drop(attempt)
        if outcome != "forget":
            report = self._report(attempt, outcome, reason)
            self.ready_reports.append(msgspec.structs.replace(report, error_code=code) if code else report)

    def leave_behind(self, reason: str) -> None:
        """What dies now has not failed: nobody but us has ended it, and it is to run elsewhere."""
        for attempt in self.attempts.values():
            if attempt.state == "sent" and not attempt.doomed:
                attempt.doomed, attempt.reason = "moved", reason

    def drop(self, attempt: Attempt) -> None:
        """Forgets an attempt that no lane holds any more."""
        del self.attempts[attempt.ref]
        attempt.job.live -= 1

    def end(self, attempt: Attempt, outcome: str, reason: str) -> None:
        """Brings an attempt to an end as ordered; one that has started is not taken back."""
        if attempt.state in ("preparing", "waiting"):
            if attempt.state == "waiting":
                self._unqueued.append(attempt)
            attempt.state = "dropped"
            self.report_unstarted(attempt, outcome, reason)
        elif attempt.state == "uploading":
            if outcome == "forget":
                self.uploading.pop(attempt.ref, None)
                self.early.pop(attempt.ref, None)
                self.drop(attempt)
        elif attempt.state == "sent" and not (outcome == "returned" and attempt.doomed):
            self._end_sent(attempt, outcome, reason)

    def _end_sent(self, attempt: Attempt, outcome: str, reason: str) -> None:
        lane = self.lanes.lanes[attempt.lane]
        if lane.is_worker or lane.queue[0] is not attempt:
            attempt.doomed, attempt.reason = outcome, reason
            self._recall(lane)
        elif outcome != "returned":
            # The first command of a lane has started, always.
            fresh = not attempt.doomed
            if fresh or outcome == "forget":
                attempt.doomed, attempt.reason = outcome, reason
            if fresh:
                self.out.append(StopCommand(attempt.ref, attempt.grace_s))

    def settle(self, now: float) -> None:
        """Takes out of the queue what was ended while it waited, and stops what is not to go on."""
        if self._unqueued:
            self.lanes.drop_waiting(self._unqueued)
            self._unqueued.clear()
        if self.suspended or self._standing:
            self._stop_suspended(now)

    def finished(self, attempt: Attempt, report: Report, now: float) -> None:
        """Takes an attempt off its lane with the outcome that was seen."""
        lane = self.lanes.lanes[attempt.lane]
        self.lanes.ended(attempt, now)
        if lane.stale and not lane.queue:
            self.lanes.stop(lane, 0.0, self.out)
        if report.started_at is not None and report.finished_at is not None:
            learn_duration(attempt.job, report.finished_at - report.started_at)
        if attempt.doomed == "forget":
            self.drop(attempt)
            return
        if attempt.doomed not in ("", "returned") and not attempt.job.is_function:
            # A command may take SIGTERM in its stride and exit with 0; a function that returned was in time.
            code, error = _CODES.get(attempt.doomed, ""), attempt.reason
            if report.error_code == STUCK:
                error = f"{error}; {report.error}"
            report = msgspec.structs.replace(report, outcome=attempt.doomed, error=error, error_code=code)
        elif report.error_code == STUCK:
            report = msgspec.structs.replace(report, error_code="")
        self._report_or_upload(attempt, report)

    def _report_or_upload(self, attempt: Attempt, report: Report) -> None:
        """Reports an attempt that is over, once everything that the report names is with the masters."""
        outputs = attempt.job.spec.outputs if report.outcome == "succeeded" else ()
        result = report.result if report.result is not None and report.result.digest else Payload()
        due = report.tail is not None and report.tail.is_due
        if not (result.digest or outputs or due):
            self.drop(attempt)
            self.ready_reports.append(report)
            return
        attempt.state = "uploading"
        self.uploading[attempt.ref] = report
        self.out.append(Upload(attempt.ref, result.digest, result.size_bytes, outputs, due))
        if not (result.digest or outputs):
            # Its outcome stands: if this agent dies now, its monitor tells it, and nothing runs again for its output.
            early = self.early[attempt.ref] = msgspec.structs.replace(report, tail=_UNTIMELY)
            self.out.append(KeepReports((early,), send=False))

    @staticmethod
    def _report(attempt: Attempt, outcome: str, error: str) -> Report:
        job, task, number = attempt.ref
        digest = attempt.job.template.tree_digest
        return Report(job, task, number, outcome, error=error, code_index=attempt.job.code_index, code_digest=digest)

    # ------------------------------------------------------------ lanes

    def _recall(self, lane: Lane) -> None:
        if not lane.recalling:
            lane.recalling = True
            self.out.append(Recall(lane.id))

    def _on_recalled(self, event: Recalled, now: float) -> None:
        lane = self.lanes.lanes.get(event.lane)
        if lane is None:
            return
        lane.recalling = False
        if event.full:
            for attempt in lane.queue:  # as many as there is room for, until one has ended
                attempt.job.depth = max(1, min(attempt.job.depth, len(lane.queue) - len(event.attempts)))
        self._take_back(lane, event.attempts, now)
        for attempt in lane.queue:
            if attempt.doomed == "returned":
                attempt.doomed = ""  # too late: it has started
        # All of the queue has started, in order: whatever is not the last has ended, its end is on the way.
        if lane.queue and lane.queue[-1].doomed:
            last = lane.queue[-1]
            if lane.is_worker:
                self.lanes.stop(lane, last.grace_s, self.out)
            else:
                self.out.append(StopCommand(last.ref, last.grace_s))
        self._flush(now)

    def _take_back(self, lane: Lane, refs: tuple[AttemptRef, ...], now: float) -> None:
        """Puts attempts that have not started back into the queue; those that are doomed end here."""
        unstarted = set(refs)
        back = [attempt for attempt in lane.queue if attempt.ref in unstarted]
        self.lanes.take_back(lane, back, now)
        for attempt in back:
            if attempt.doomed:
                self.report_unstarted(attempt, attempt.doomed, attempt.reason)
            elif closed := self.closed_to(attempt.job):
                attempt.state = "waiting"
                self.end(attempt, "returned", closed)

    def _on_worker_ready(self, event: WorkerReady, now: float) -> None:
        worker = self.lanes.lanes.get(event.worker)
        if worker is not None and not worker.ready:
            worker.ready = True
            worker.head_s = now  # what waited for it starts now
            self._start_failures.pop(worker.code_index, None)

    def _on_worker_ended(self, event: WorkerEnded, now: float) -> None:
        worker = self.lanes.lanes.get(event.worker)
        if worker is None:
            return
        self._take_back(worker, event.unread, now)
        self.lanes.remove_worker(worker.id)
        tail = event.tail
        for attempt in worker.queue:
            if attempt.doomed == "forget":
                self.drop(attempt)
            else:
                death = self._death(attempt, event, now - worker.head_s)
                self._report_or_upload(attempt, msgspec.structs.replace(death, tail=tail))
            tail = None  # only the first one can have written
        if not worker.ready and not worker.queue and (worker.hung or not worker.stopping):
            self._count_start_failure(worker, event.reason)
        self._flush(now)

    def _death(self, attempt: Attempt, event: WorkerEnded, age_s: float) -> Report:
        outcome, error = attempt.doomed or "failed", attempt.reason if attempt.doomed else event.reason
        if attempt.doomed and event.error_code == STUCK:
            error = f"{error}; {event.reason}"
        return msgspec.structs.replace(
            self._report(attempt, outcome, error),
            exit_code=event.exit_code,
            signal=event.signal,
            started_at=event.at - age_s,
            finished_at=event.at,
            error_code=_CODES.get(outcome, ""),
        )

    def _count_start_failure(self, worker: Lane, reason: str) -> None:
        """Ends one task if workers of its code cannot even start, so that it does not go round for ever."""
        failures = self._start_failures.get(worker.code_index, 0) + 1
        self._start_failures[worker.code_index] = failures
        if failures < START_FAILURES:
            return
        for attempt in self.lanes.waiting:
            if attempt.job.is_function and attempt.job.code_index == worker.code_index:
                self._unqueued.append(attempt)
                self.report_unstarted(attempt, "failed", f"no worker process could be started: {reason}")
                break

    # ------------------------------------------------------------ needs

    def await_need(self, need: str, attempt: Attempt) -> None:
        """Makes an attempt wait until a blob or a tree is here."""
        if need not in self.needs:
            self.needs[need] = []
            self.out.append(Prepare(need))
        waiting = self.needs[need]
        if waiting is not None:
            waiting.append(attempt)
            attempt.missing += 1

    def need_met(self, need: str) -> list[Attempt]:
        """Returns the attempts that wait for nothing more."""
        waiting = self.needs.get(need) or []
        self.needs[need] = None
        if need[:6] == "stage:":
            del self.needs[need]  # nobody else will ever ask for it
        for attempt in waiting:
            attempt.missing -= 1
        return [attempt for attempt in waiting if not attempt.missing and attempt.state == "preparing"]

    def need_failed(self, need: str, error: str, *, for_good: bool) -> None:
        """Gives back what cannot be prepared here, or ends what cannot be prepared anywhere."""
        for attempt in self.needs.pop(need, None) or []:
            if attempt.state == "preparing":
                attempt.state = "dropped"
                code = "bad_inputs" if for_good else ""
                self.report_unstarted(attempt, "failed" if for_good else "returned", error, code)

    # ------------------------------------------------------------ the owner of the machine

    def _on_owner(self, event: OwnerStands, now: float) -> None:
        before, self.owner = self.owner, event
        if event.reason and not before.reason:
            for attempt in list(self.attempts.values()):
                self.end(attempt, "returned", self.closed)
        if event.lower != before.lower:
            self.out.append(Lower(event.lower))
        if event.suspend != before.suspend:
            for lane in self.lanes.lanes.values():
                (lane.suspend if event.suspend else lane.resume)(OWNER, now)
            self.out.append((Suspend if event.suspend else Resume)(None, OWNER))
        self._make_way()
        self._flush(now)

    def _make_way(self) -> None:
        """Ends what has been in the owner's way for long enough. What may not run elsewhere goes on standing still."""
        owner = self.owner
        if not owner.end:
            return
        for attempt in list(self.attempts.values()):
            if attempt.state == "sent" and not attempt.doomed and (attempt.job.spec.restartable or owner.end_all):
                attempt.grace_s = owner.grace_s
                self.end(attempt, "moved", self.closed)

    # ------------------------------------------------------------ suspended jobs

    def suspend_jobs(self, jobs: frozenset[int]) -> None:
        """Takes which jobs are suspended; `settle` does what that means for what runs. The rest is given back."""
        fresh, self.suspended = jobs - self.suspended, jobs
        if fresh:
            for attempt in list(self.attempts.values()):
                if attempt.job.id in fresh:
                    self.end(attempt, "returned", JOB_SUSPENDED)

    def _stop_suspended(self, now: float) -> None:
        """Has lanes stand still at whose head is a task of a suspended job, and no others; their clock stops too."""
        lanes, before = self.lanes.lanes, self._standing
        self._standing = {
            lane.id: lane.queue[0].ref
            for lane in lanes.values()
            if lane.queue and lane.queue[0].job.id in self.suspended
        }
        for number, ref in self._standing.items():
            if before.get(number) != ref:  # each command is a process of its own
                lanes[number].suspend(JOB, now)
                self.out.append(Suspend(number, JOB))
                if len(lanes[number].queue) > 1:
                    self._recall(lanes[number])  # what was handed ahead, of whatever job, must not wait for it
        for number in before.keys() - self._standing.keys():
            if number in lanes:
                lanes[number].resume(JOB, now)
                self.out.append(Resume(number, JOB))

    def why_still(self) -> dict[str, str]:
        """Returns the tasks that stand still, such as `42.7`, and why each does."""
        words = {JOB: JOB_SUSPENDED, OWNER: self.closed}
        found = {}
        for lane in self.lanes.lanes.values():
            if lane.suspended and lane.queue and not lane.queue[0].doomed:
                job, task, _ = lane.queue[0].ref
                found[f"{job}.{task}"] = "; ".join(words[reason] for reason in sorted(lane.suspended))
        return found

    # ------------------------------------------------------------ time

    def look(self, now: float, *, announce: bool) -> None:
        """Looks at everything that depends on time."""
        self._make_way()
        started: list[tuple[int, int, int, float]] = []
        stalled_s = STALLED_AFTER_S / 2 if self.lanes.free else STALLED_AFTER_S
        for lane in list(self.lanes.lanes.values()):
            if not lane.queue or lane.stopping or lane.suspended:
                continue
            if not lane.ready:
                if now - lane.head_s > START_WITHIN_S:
                    lane.hung = True
                    self.lanes.stop(lane, 0.0, self.out)
                continue
            self._look_at(lane.queue[0], lane.head_s, now, started if announce else None)
            if len(lane.queue) > 1 and now - lane.head_s > stalled_s:
                # The task at the head is longer than its like: what was handed ahead must not wait for it.
                job = lane.queue[0].job
                job.average_s, job.depth = max(job.average_s, now - lane.head_s), 1
                self._recall(lane)
        if started:
            self.out.append(Announce(tuple(started)))
        if not self.lanes.free:
            self._give_back(now)

    def _look_at(self, attempt: Attempt, since_s: float, now: float, started: list[Any] | None) -> None:
        """Announces an attempt that has been running for a moment, and ends one whose time is up."""
        age_s = now - since_s
        if age_s < ANNOUNCE_AFTER_S:
            return
        if started is not None and not attempt.announced:
            attempt.announced = True
            started.append((*attempt.ref, age_s))
        limit_s = attempt.job.spec.timeout_s
        if limit_s and age_s >= limit_s and not attempt.doomed:
            self.end(attempt, "timed_out", f"ran longer than its limit of {limit_s:g} s")

    def _give_back(self, now: float) -> None:
        for attempt in self.lanes.waiting:
            if now - attempt.assigned_s <= GIVE_BACK_AFTER_S:
                break
            attempt.state = "dropped"
            self._unqueued.append(attempt)
            self.report_unstarted(attempt, "returned", NO_SLOT)
