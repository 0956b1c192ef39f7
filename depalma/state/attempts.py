"""Commands about attempts: assign, start, finish; and what a lost host means for them. [pure]

These are the hot ones. A batch is many small guarded writes: each is accepted or refused on its own, what belongs to
a whole job is looked at once a stretch of equal jobs, and a job is settled once a command.
"""

from __future__ import annotations

from depalma.model import MAX_TASKS, AttemptRef, Report
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import (
    Applied,
    AssignOutcome,
    AssignTasks,
    FinishOutcome,
    FinishTasks,
    Rejected,
    StartTasks,
)
from depalma.state.completions import shared
from depalma.state.deadlines import note_returned
from depalma.state.event_log import MOVED, RETURNED, Detail
from depalma.state.gangs import end_member
from depalma.state.hosts import Host
from depalma.state.jobs import MAX_PAST_ERROR, Attempt, Job
from depalma.state.placement import misfit
from depalma.state.quotas import holders_of
from depalma.state.retries import Verdict, hold_off, may_retry
from depalma.state.shapes import Shape
from depalma.state.stories import PastAttempt
from depalma.state.task_states import ASSIGNED, CANCELLED, FAILED, LOST, OUTCOMES, QUEUED, SUCCEEDED, TIMED_OUT, WORDS
from depalma.state.ways import shape_of_attempt

#: Longest reason that is kept of a placement.
MAX_REASON = 300
_NO_SHAPE = Shape("", "", 0, 0)
_BACK_WORDS = {"returned": RETURNED, "moved": MOVED, "succeeded": SUCCEEDED}


def assign_tasks(state: ClusterState, command: AssignTasks) -> Applied | Rejected:
    """Gives the tasks to the host, each if it is still queued, next in attempts, and allowed there."""
    if command.term < state.term:
        return Rejected("stale_term", f"assigned by a leader of term {command.term}, term {state.term} has begun")
    fence = state.version
    refusal = host_refusal(state, command.host, command.incarnation)
    if refusal:
        return Applied(AssignOutcome((), fence, tuple((ref, refusal) for ref in command.tasks)), state.version)
    host = state.hosts[command.host]
    state.term = command.term
    accepted, refused = _assign_all(state, host, command, fence)
    if accepted:
        detail: Detail = {"reason": command.reason[:MAX_REASON], "fence": fence}
        state.events.add("task.assigned", command.at, host=host.name, refs=accepted, detail=detail)
        state.changes.hosts.add(host.name)
    return Applied(AssignOutcome(accepted, fence, refused), state.version)


def host_refusal(state: ClusterState, name: str, incarnation: str) -> str:
    """Returns the word for why this life of the host's agent gets no task at all now; empty if it does."""
    host = state.hosts.get(name)
    if host is None:
        return "unknown_host"
    if host.incarnation != incarnation:
        return "stale_incarnation"
    if host.state != "up":
        return "host_not_up"
    if host.presence is not None:
        return "host_owner"
    return "" if host.takes_work else "host_draining"


def _assign_all(
    state: ClusterState, host: Host, command: AssignTasks, fence: int
) -> tuple[tuple[AttemptRef, ...], tuple[tuple[AttemptRef, str], ...]]:
    """Returns what was accepted and what was refused, with the word for why."""
    accepted: list[AttemptRef] = []
    refused: list[tuple[AttemptRef, str]] = []
    touched: dict[int, Job] = {}
    name, incarnation, at, reason = host.name, host.incarnation, command.at, command.reason[:MAX_REASON]
    way = command.alternative
    job: Job | None = None
    limited = state.limits.are_set or bool(state.quotas)
    job_id, room = -1, 0
    shape = _NO_SHAPE
    barred = "unknown_job"
    wanted = dict(zip(command.tasks, command.gpus, strict=False)) if command.gpus else None
    for ref in command.tasks:
        if ref[0] != job_id:
            job_id = ref[0]
            if job is not None and (limited or job.spec.tags or job.spec.limits):
                state.count(job, at)  # limits are of several jobs
            job = state.jobs.get(job_id)
            shape = job.shape if job is not None else _NO_SHAPE
            if way and 0 < way <= len(shape.others):
                shape = shape.others[way - 1]
            barred, room = job_terms(state, job, host, shape)
            if shape.gang:
                barred = "gang"  # all at once or none: see AssignGang
            elif way and job is not None and not 0 < way <= len(job.shape.others):
                barred = "unknown_alternative"
        problem = barred or ("job_limit" if room <= 0 else "")
        if problem or job is None:
            refused.append((ref, problem))
            continue
        index, number = ref[1], ref[2]
        problem = task_problem(job, index, number)
        if problem:
            refused.append((ref, problem))
            continue
        attempt = Attempt(number, name, incarnation, at, None, fence, reason, (), way)
        if shape.needs:
            if not host.has_room(shape.needs, host.taken):
                refused.append((ref, "no_room"))
                continue
            own = wanted.get(ref, ()) if wanted is not None else ()
            gpus = host.choose_gpus(shape, host.taken, command.avoid, own)
            if gpus is None:
                refused.append((ref, "no_room"))
                continue
            attempt.gpus = gpus
        job.assign(index, attempt)
        host.put(ref, attempt, shape)
        room -= 1
        touched[job_id] = job
        accepted.append(ref)
    for job in touched.values():
        state.settle(job, at)
    return tuple(accepted), tuple(refused)


def job_terms(state: ClusterState, job: Job | None, host: Host, shape: Shape) -> tuple[str, int]:
    """Returns why no task of the job may go to the host now and take what the shape says, and how many may at most."""
    if job is None:
        return "unknown_job", 0
    if job.held:
        return "held", 0
    if job.suspension is not None:
        return "suspended", 0
    if job.waits:
        return "blocked", 0
    if job.cancelled:
        return "cancelled", 0
    if job.code_index > host.code_index:
        return "code_lag", 0
    # Slots are the leader's to count (it may assign ahead); a task too large for the whole host is refused here too.
    if misfit(shape, host, host.slots or shape.weight):
        return "constraint", 0
    limit = job.spec.max_running
    room = limit - len(job.running) if limit else MAX_TASKS
    if job.spec.limits or state.limits.are_set:
        room = min(room, state.limits.room_of(job, state.shares.account(job.spec.user)))
    if state.quotas:
        room = min(room, state.quotas.room(holders_of(job), shape))
    return "", room


def task_problem(job: Job, index: int, number: int) -> str:
    """Returns the word for why this attempt of a task cannot be given to any host; empty if it can."""
    position = index - job.first
    states = job.states
    if not 0 <= position < len(states):
        return "unknown_task"
    if states[position] != QUEUED:
        return "not_queued"
    story = job.stories.get(position) if job.stories else None
    return "" if number == (story.last + 1 if story else 1) else "stale_attempt"


def start_tasks(state: ClusterState, command: StartTasks) -> Applied | Rejected:
    """Records that attempts run; those that do not live there any more are stale."""
    host = state.hosts.get(command.host)
    if host is None:
        return _unknown_host(command.host)
    live = host.attempts if host.incarnation == command.incarnation else {}
    recorded: list[AttemptRef] = []
    started: list[AttemptRef] = []
    stale: list[AttemptRef] = []
    for job_id, index, number, started_at in command.tasks:
        ref = (job_id, index, number)
        attempt = live.get(ref)
        if attempt is None:
            stale.append(ref)
            continue
        recorded.append(ref)
        job = state.jobs[job_id]
        if job.states[index - job.first] == ASSIGNED:
            job.start(index, attempt, started_at)
            state.changes.jobs.add(job_id)
            started.append(ref)
    if started:
        state.events.add("task.started", command.at, host=host.name, refs=tuple(started))
    return Applied(FinishOutcome(tuple(recorded), tuple(stale)), state.version)


class _Endings:
    """What one command ended, for its events."""

    __slots__ = ("back", "back_words", "ended", "lost", "touched", "words")

    def __init__(self) -> None:
        self.ended: list[AttemptRef] = []
        self.words = bytearray()
        self.lost: list[AttemptRef] = []
        self.back: list[AttemptRef] = []
        self.back_words = bytearray()
        self.touched: dict[int, Job] = {}

    def note_end(self, ref: AttemptRef, code: int) -> None:
        """Notes that a task has ended for good."""
        if code == LOST:
            self.lost.append(ref)
        else:
            self.ended.append(ref)
            self.words.append(code)

    def note_back(self, ref: AttemptRef, verdict: Verdict) -> None:
        """Notes that a task goes back."""
        self.back.append(ref)
        self.back_words.append(_BACK_WORDS.get(verdict.word, verdict.code))

    def publish(self, state: ClusterState, host: Host, at: float, reason: str = "") -> None:
        """Adds the events and settles the jobs."""
        add, name = state.events.add, host.name
        detail = {"reason": reason} if reason else None
        if self.ended:
            add("task.finished", at, host=name, refs=tuple(self.ended), words=bytes(self.words), detail=detail)
        if self.lost:
            add("task.lost", at, host=name, refs=tuple(self.lost), detail=detail)
        if self.back:
            add("task.requeued", at, host=name, refs=tuple(self.back), words=bytes(self.back_words), detail=detail)
        for job in self.touched.values():
            state.settle(job, at)
        if self.touched:
            state.settle_host(host, at)


def finish_tasks(state: ClusterState, command: FinishTasks) -> Applied | Rejected:
    """Records how attempts ended; a report of an attempt that does not live there any more is stale."""
    host = state.hosts.get(command.host)
    if host is None:
        return _unknown_host(command.host)
    live = host.attempts if host.incarnation == command.incarnation else {}
    endings = _Endings()
    touched, ended, words = endings.touched, endings.ended, endings.words
    recorded: list[AttemptRef] = []
    stale: list[AttemptRef] = []
    at = command.at
    for report in command.reports:
        job_id = report.job
        ref = (job_id, report.task, report.attempt)
        attempt = live.pop(ref, None)
        if attempt is None:
            stale.append(ref)
            continue
        job = touched.get(job_id)
        if job is None:
            job = touched[job_id] = state.jobs[job_id]
        host.release(job_id, attempt, shape_of_attempt(job, attempt) if attempt.alternative else job.shape)
        recorded.append(ref)
        if job.gangs:
            _end_member(state, job, ref, attempt, report, _judge(job, attempt, report), at, endings)
        elif report.outcome == "succeeded":
            job.finish(report.task, SUCCEEDED, attempt, report, at)
            ended.append(ref)
            words.append(SUCCEEDED)
        else:
            _end_badly(state, job, ref, attempt, report, at, endings)
    endings.publish(state, host, at)
    return Applied(FinishOutcome(tuple(recorded), tuple(stale)), state.version)


def _judge(job: Job, attempt: Attempt, report: Report) -> Verdict:
    """Returns what a report means."""
    outcome = report.outcome
    if outcome == "succeeded":
        return Verdict(SUCCEEDED, False, False, outcome)
    if outcome == "moved" and (report.started_at or attempt.started_at) is None:
        outcome = "returned"  # it had not started: that costs nobody anything
    if outcome == "returned":
        return Verdict(CANCELLED, not job.cancelled, False, outcome)
    if outcome == "moved":
        return Verdict(CANCELLED if job.cancelled else LOST, job.spec.restartable and not job.cancelled, False, outcome)
    # An outcome that this version does not know is a failure: the attempt is over in any case.
    code = OUTCOMES.get(outcome, FAILED)
    counts = code in (FAILED, TIMED_OUT)
    ended_with = 128 + report.signal if report.signal else report.exit_code  # as everywhere where a code is shown
    retry = counts and may_retry(job, report.task, code, ended_with)
    if retry and job.cancelled:
        code = CANCELLED
    return Verdict(code, retry and not job.cancelled, counts, WORDS[code])


def _end_badly(
    state: ClusterState, job: Job, ref: AttemptRef, attempt: Attempt, report: Report, at: float, endings: _Endings
) -> None:
    """Ends an attempt that did not succeed: for good, or back to the queue."""
    index = report.task
    code, again, counts, word = verdict = _judge(job, attempt, report)
    if not again:
        job.finish(index, code, attempt, report, at)
        endings.note_end(ref, code)
        return
    started = attempt.started_at if report.started_at is None else report.started_at
    finished = at if report.finished_at is None else report.finished_at
    error, tail = report.error[-MAX_PAST_ERROR:], shared(report.tail)
    past = PastAttempt(attempt.number, attempt.host, word, started, finished, error, tail, attempt.alternative)
    job.requeue(index, attempt, past, counts)
    if word == "returned":
        note_returned(state, job, index - job.first)
    if counts:
        hold_off(state, job, index, code, at)
    endings.note_back(ref, verdict)


def _end_member(
    state: ClusterState,
    job: Job,
    ref: AttemptRef,
    attempt: Attempt,
    report: Report,
    verdict: Verdict,
    at: float,
    endings: _Endings,
) -> None:
    """Ends an attempt of a task that is in a gang."""
    if end_member(state, job, ref, attempt, report, verdict, at):
        endings.note_back(ref, verdict)
    else:
        endings.note_end(ref, verdict.code)


def lose_attempts(
    state: ClusterState, host: Host, reason: str, at: float, keep: frozenset[AttemptRef] = frozenset()
) -> int:
    """Takes everything but `keep` from a host that is gone: back to the queue, or ended where it may not run again."""
    endings = _Endings()
    gone = sorted(ref for ref in host.attempts if ref not in keep)
    for ref in gone:
        attempt = host.attempts.pop(ref)
        job = endings.touched.setdefault(ref[0], state.jobs[ref[0]])
        host.release(ref[0], attempt, shape_of_attempt(job, attempt))
        index = ref[1]
        again = job.spec.restartable and not job.cancelled and may_retry(job, index, LOST, None)
        code = CANCELLED if job.cancelled else LOST
        if job.gangs:
            report = Report(*ref, WORDS[code], error=reason, code_index=job.code_index)
            _end_member(state, job, ref, attempt, report, Verdict(code, again, False, "lost"), at, endings)
            continue
        if again:
            past = PastAttempt(
                attempt.number, host.name, "lost", attempt.started_at, at, reason[-MAX_PAST_ERROR:],
                alternative=attempt.alternative,
            )  # fmt: skip
            job.requeue(index, attempt, past, counts=False)
            job.stories[index - job.first].losses += 1
            endings.back.append(ref)
            endings.back_words.append(LOST)
            continue
        report = Report(*ref, WORDS[code], error=reason, code_index=job.code_index)
        job.finish(index, code, attempt, report, at)
        endings.note_end(ref, code)
    endings.publish(state, host, at, reason)
    return len(gone)


def _unknown_host(name: str) -> Rejected:
    return Rejected("unknown_host", f"there is no host {name}")
