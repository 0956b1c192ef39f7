"""The rules that tie the parts of the state together, as code. [pure]

Run after every unit test and simulation step. What would cost a look at every task is done for jobs up to
`FULL_CHECK_TASKS`; larger ones are checked by counting bytes.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from depalma.gpuparts import WHOLE
from depalma.model import AttemptRef
from depalma.state.dependencies import check_dependencies
from depalma.state.gangs import check_gangs
from depalma.state.hosts import Host
from depalma.state.jobs import Attempt, Job
from depalma.state.limits import Gate, tags_of
from depalma.state.placement import misfit
from depalma.state.quotas import Quotas
from depalma.state.ready import Lane, Line
from depalma.state.schedule import check_schedules
from depalma.state.shapes import GPUS, Shape, held
from depalma.state.task_states import ASSIGNED, BLOCKED, FINAL_CODES, QUEUED, RUNNING, WORDS
from depalma.state.ways import on_hosts, shape_of_attempt, slots_on_hosts

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState

FULL_CHECK_TASKS = 5000
_CHECKED_RECORDS = 1000


class BrokenInvariant(AssertionError):
    """The state contradicts itself; the message names the rule and the job or host."""


def check(state: ClusterState) -> None:
    """Checks everything. Errors: BrokenInvariant."""
    live: dict[str, dict[AttemptRef, Attempt]] = {name: {} for name in state.hosts}
    ready = 0
    for job_id, job in state.jobs.items():
        _must(job.id == job_id < state.next_job, f"job {job_id}: its id is {job.id}, the next is {state.next_job}")
        _check_job(job)
        _check_running(state, job, live)
        _must(job.ready == job.wants_host, f"job {job_id}: ready {job.ready}, wants a host {job.wants_host}")
        _must(0 <= job.code_index <= state.code_index, f"job {job_id}: code index {job.code_index} is not in the log")
        ready += job.ready
    _must(list(state.jobs) == sorted(state.jobs), "jobs are not in order of id")
    _check_ready(state, ready)
    _check_counts(state)
    check_dependencies(state, _must)
    check_schedules(state, _must)
    back = state.removed.intersection(state.hosts)
    _must(not back, f"hosts {sorted(back)} are there and removed")
    for key, invitation in state.invitations.items():
        _must(invitation.secret_hash == key, f"invitation {key} has the secret {invitation.secret_hash}")
    for host in state.hosts.values():
        _check_host(state, host, live[host.name])
    for place, entry in enumerate(state.code, 1):
        _must(entry.index == place, f"code entry {place}: its index is {entry.index}")
    _check_events(state)
    _check_webhooks(state)


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise BrokenInvariant(message)


def _check_job(job: Job) -> None:
    name, states = f"job {job.id}", job.states
    queued = states.count(QUEUED) + states.count(BLOCKED)
    live = states.count(ASSIGNED) + states.count(RUNNING)
    _must(queued == job.queued, f"{name}: {queued} tasks are queued, {job.queued} by arithmetic")
    _must(live == len(job.running), f"{name}: {live} tasks live, {len(job.running)} attempts")
    for code in range(len(WORDS)):
        counted = states.count(code) if code in FINAL_CODES else 0
        _must(counted == job.tally[code], f"{name}: {counted} tasks {WORDS[code]}, tally says {job.tally[code]}")
    _must(sum(job.tally) == job.done.ended, f"{name}: {sum(job.tally)} tasks are final, {job.done.ended} completions")
    below = states.count(QUEUED, 0, job.cursor)
    _must(below == len(job.requeued), f"{name}: {below} queued below the cursor, {len(job.requeued)} in the list")
    _must(job.requeued == sorted(set(job.requeued)), f"{name}: requeued is not sorted and distinct")
    _must(all(states[position] == QUEUED for position in job.requeued), f"{name}: requeued holds one that is not")
    _must(0 <= job.cursor <= len(states), f"{name}: cursor {job.cursor} of {len(states)}")
    left = bool(queued or live or job.open or job.waits)
    _must(job.is_final != left, f"{name}: final {job.is_final}, with {queued} queued, {live} live, open {job.open}")
    _must(not job.cancelled or (not queued and not job.open), f"{name}: cancelled, yet {queued} queued or open")
    _must(not job.asleep or (not live and not job.cancelled), f"{name}: runs before its time")
    _must(not (job.cancelled or job.is_final) or job.suspension is None, f"{name}: over, and suspended")
    limit = job.spec.max_running
    _must(not limit or live <= limit, f"{name}: {live} live, limit {limit}")
    for position, story in job.stories.items():
        _must(0 <= story.failures <= story.last, f"{name}: position {position}: {story.failures} failures")
        _must(0 <= position < len(states), f"{name}: story of position {position}")
    if len(states) <= FULL_CHECK_TASKS:
        _check_tasks(job)
        check_gangs(job, _must)


def _check_tasks(job: Job) -> None:
    """Looks at every task."""
    final = {job.first + position for position, code in enumerate(job.states) if code in FINAL_CODES}
    order = [index for place, index in enumerate(job.finished_order) if job.done.counts_at(place)]
    _must(len(order) == len(set(order)) and set(order) == final, f"job {job.id}: completions are not the final tasks")
    for index in order:
        record = job.outcome(index)
        _must(record is not None and record.state == job.state_of(index), f"job {job.id}: record of task {index}")


def _check_running(state: ClusterState, job: Job, live: dict[str, dict[AttemptRef, Attempt]]) -> None:
    """Checks the attempts of a job and files them under their host."""
    for index, attempt in job.running.items():
        name = f"task {job.id}.{index}"
        position = index - job.first
        code = job.states[position]
        _must(code in (ASSIGNED, RUNNING), f"{name}: has an attempt and is {WORDS[code]}")
        _must((attempt.started_at is not None) == (code == RUNNING), f"{name}: {WORDS[code]}, {attempt.started_at}")
        story = job.stories.get(position)
        _must(attempt.number == (story.last if story else 0) + 1, f"{name}: attempt {attempt.number}")
        _must(0 < attempt.fence <= state.version, f"{name}: fence {attempt.fence}, version {state.version}")
        _must(attempt.host in live, f"{name}: on unknown host {attempt.host}")
        live[attempt.host][job.id, index, attempt.number] = attempt


def _check_ready(state: ClusterState, ready: int) -> None:
    indexed = 0
    for priority, level in state.ready.levels.items():
        _must(bool(level.stands), f"ready index: priority {priority} is empty")
        numbers = [number for _, number in level.order]
        _must(sorted(numbers) == sorted(level.stands), f"ready index: users {numbers}, stands of {level.stands.keys()}")
        _must(level.order == sorted(level.order), f"ready index: users out of order: {level.order}")
        heads = {line: head for stand in level.stands.values() for head, line in stand.heads}
        for stand in level.stands.values():
            _must(
                [head for head, _ in stand.heads] == sorted(line.head for _, line in stand.heads), "ready index: heads"
            )
        for (shape, gates), lane in level.lanes.items():
            _must(bool(lane.lines), f"ready index: lane {shape} is empty")
            for line in lane.lines.values():
                _must(heads.pop(line, 0) == line.head == line.jobs.first, f"ready index: head {line.head} of a line")
                indexed += _check_line(state, line, priority, shape, gates)
        _must(not heads, f"ready index: lines in no lane: {heads.values()}")
    _must(indexed == ready == state.ready.jobs, f"ready index holds {indexed} jobs, {ready} are ready")
    _must(state.ready.priorities() == sorted(state.ready.levels, reverse=True), "ready index: priorities")
    _must(state.ready.fed_at.keys() == state.ready.levels.keys(), f"fed: {state.ready.fed_at}")
    lanes = [lane for level in state.ready.levels.values() for lane in level.lanes.values()]
    _must(state.ready.preempting == sum(lane.shape.preempts for lane in lanes), "ready index: lanes that preempt")
    _check_fits(state, lanes)


def _check_fits(state: ClusterState, lanes: list[Lane]) -> None:
    """Checks what is known of which hosts fit against each host."""
    state.fits.begin(state.hosts)
    for lane in lanes:
        bits = state.fits.of(lane, state.hosts)
        ways = lane.shape.ways
        fitting = {name for name, host in state.hosts.items() if any(not misfit(way, host, inf) for way in ways)}
        known = {name for name, number in state.fits.numbers.items() if bits >> number & 1}
        _must(bits.bit_count() == len(known) and known == fitting, f"{lane.shape} fits {fitting}, known are {known}")


def _check_line(state: ClusterState, line: Line, priority: int, shape: Shape, gates: tuple[Gate, ...]) -> int:
    """Checks one line; returns how many jobs it has."""
    previous = 0
    for number in line.jobs:
        job = state.jobs.get(number)
        _must(job is not None and job.ready and job.line is line, f"ready index: job {number} is not of its line")
        if job is not None:
            found = job.spec.priority, job.shape, state.limits.gates(job, state.quotas.most), job.spec.user
            _must(found == (priority, shape, gates, line.account.name), f"ready index: job {number} is {found}")
        _must(previous < number, f"ready index: out of order at job {number}")
        previous = number
    _must(previous > 0, f"ready index: an empty line of {line.account.name!r}")
    return len(line.jobs)


def _check_counts(state: ClusterState) -> None:
    """Checks what limits and shares count against the attempts that live."""
    tasks: Counter[str] = Counter()
    slots: dict[str, float] = {}
    gates: Counter[tuple[str, str]] = Counter()
    for job in state.jobs.values():
        live = len(job.running)
        _must(job.counted == live, f"job {job.id}: {live} live, {job.counted} counted")
        if job.shape.others:
            known = state.ways.get(job.id, [])
            _must(known == on_hosts(job), f"job {job.id}: {on_hosts(job)} are on hosts, {known} counted")
        if live:
            tasks[job.spec.user] += live
            slots[job.spec.user] = slots.get(job.spec.user, 0) + slots_on_hosts(job)
            gates.update({("tag", tag): live for tag in tags_of(job)})
            if job.spec.group:
                gates["group", job.spec.group] += live
    used = Quotas()
    used.most = state.quotas.most
    used.recount(state.jobs.values())
    _must(used.used == state.quotas.used, f"quotas count {state.quotas.used}, there is {used.used}")
    _must(dict(gates) == state.limits.tasks, f"limits count {state.limits.tasks}, there are {dict(gates)}")
    for name, account in state.shares.accounts.items():
        found = tasks[name], slots.get(name, 0)
        _must(found == (account.tasks, account.slots), f"user {name!r}: {found} live, {account.tasks}, {account.slots}")
        _must(0 <= account.usage < 1e300, f"user {name!r}: usage {account.usage}")
    _must(tasks.keys() <= state.shares.accounts.keys(), f"users without account: {tasks.keys()}")


def _check_host(state: ClusterState, host: Host, live: dict[AttemptRef, Attempt]) -> None:
    name = f"host {host.name}"
    _must(host.attempts.keys() == live.keys(), f"{name}: attempts {set(host.attempts) ^ set(live)} do not match")
    _must(all(host.attempts[ref] is attempt for ref, attempt in live.items()), f"{name}: two objects for an attempt")
    _must(all(a.incarnation == host.incarnation for a in live.values()), f"{name}: attempt of another incarnation")
    shapes = {ref: shape_of_attempt(state.jobs[ref[0]], attempt) for ref, attempt in live.items()}
    used = sum(shape.weight for shape in shapes.values())
    _must(used == host.used, f"{name}: {used} slots are used, it says {host.used}")
    taken: Counter[str | int] = Counter()
    for ref, attempt in live.items():
        taken.update(dict(held(shapes[ref].needs, attempt.gpus)))
        parts = dict(shapes[ref].needs).get(GPUS, 0)
        gpus = set(attempt.gpus)
        _must(len(gpus) == len(attempt.gpus) == -(-parts // WHOLE), f"{name}: {ref} has GPUs {attempt.gpus}")
    _must(dict(taken) == host.taken, f"{name}: {dict(taken)} is taken, it says {host.taken}")
    twice = {gpu: parts for gpu, parts in taken.items() if isinstance(gpu, int) and parts > WHOLE}
    _must(not twice, f"{name}: more than all of a GPU is given: {twice}")
    _must(dict(Counter(ref[0] for ref in live)) == host.by_job, f"{name}: attempts by job are {host.by_job}")
    _must(not live or host.state in ("up", "suspect"), f"{name}: {host.state} with {len(live)} attempts")
    over = host.incarnation in host.over
    _must(over == (host.state == "lost"), f"{name}: {host.state}, incarnation over: {over}")
    drain = host.drain
    _must(drain is None or (drain.done_at is None) == bool(live), f"{name}: drain {drain} with {len(live)} attempts")
    _must(not host.removing or bool(live), f"{name}: is being removed with nothing to wait for")
    _must((host.state == "down") == (not host.incarnation), f"{name}: {host.state} as {host.incarnation!r}")
    _must(0 <= host.code_index <= state.code_index, f"{name}: code index {host.code_index} is not in the log")
    _must(host.presence is None or bool(host.presence.reason), f"{name}: its owner is there for no reason")
    lag = host.lag
    _must(lag is None or host.code_index < lag.index <= state.code_index, f"{name}: lags as {lag}")


def _check_events(state: ClusterState) -> None:
    expected = state.events.next_index
    may_skip = False
    for record in islice(reversed(state.events.records), _CHECKED_RECORDS):
        _must(may_skip or record.first + record.count == expected, f"events: a gap before {expected}")
        may_skip = record.kind == "cluster.restored"  # the one event before which numbers are missing
        _must(len(record.words) in (0, len(record.refs)), f"events: {record.first} has words for other tasks")
        expected = record.first


def _check_webhooks(state: ClusterState) -> None:
    webhooks = state.webhooks
    _must((state.events.fresh is not None) == bool(webhooks.by_name), "events are kept for webhooks, or not, wrongly")
    _must(not state.events.fresh, f"{len(state.events.fresh or ())} events are in no outbox yet")
    _must(list(webhooks.by_name) == list(webhooks.outboxes), "webhooks and outboxes differ")
    for name, webhook in webhooks.by_name.items():
        outbox = webhooks.outboxes[name]
        _must(0 <= webhook.delivered <= webhook.last, f"webhook {name}: {webhook.delivered} of {webhook.last}")
        _must(webhook.epoch <= state.version, f"webhook {name}: epoch {webhook.epoch}, version {state.version}")
        _must((webhook.failing_since is None) == (not webhook.error), f"webhook {name}: fails, or not: {webhook.error}")
        count = sum(entry.record.count for entry in outbox.entries)
        _must(count == outbox.count, f"webhook {name}: {count} ids are kept, it says {outbox.count}")
        last = 0
        for entry in outbox.entries:
            _must(entry.first > last, f"webhook {name}: {entry.first} comes after {last}")
            _must(len(entry.numbers) in (0, len(entry.record.refs)), f"webhook {name}: numbers of {entry.first}")
            last = entry.first + entry.record.count - 1
        _must(last <= webhook.last, f"webhook {name}: {last} is kept, the last is {webhook.last}")
