"""Why a task waits, or where and why it ran, in words. [pure]

Waiting is explained host by host with the very check that the dispatcher uses (`placement.misfit`). What only the
leader knows (which hosts are connected) is not here.
"""

from __future__ import annotations

from depalma.alternatives import spec_as
from depalma.gpuparts import given
from depalma.model import FINAL_STATES
from depalma.state.cluster_state import ClusterState
from depalma.state.dependencies import waiting_for
from depalma.state.gangs import ending_line, gang_line
from depalma.state.gpus import shortage
from depalma.state.hosts import Host
from depalma.state.jobs import Job
from depalma.state.placement import misfit, room_of_gang
from depalma.state.shapes import GPUS, Shape, described, gpu_share, needs_of_host
from depalma.state.task_states import CANCELLED, QUEUED, RUNNING
from depalma.state.texts import moment
from depalma.state.turn import limit_reasons, turn_lines
from depalma.state.ways import shape_of_attempt

#: Hosts that are named one by one.
_MAX_HOSTS = 100


def explain(state: ClusterState, job: Job, index: int | None = None) -> list[str]:
    """Returns lines for people about a job, or about one of its tasks. Errors: IndexError for an unknown task."""
    if index is None:
        return _job_lines(state, job)
    word = job.state_of(index)
    lines = _story_lines(job, index)
    if word in FINAL_STATES:
        return [*lines, *_final_lines(job, index)]
    attempt = job.running.get(index)
    if attempt is None:
        return [*lines, *_waiting_lines(state, job)]
    runs = job.states[index - job.first] == RUNNING
    lines.append(f"attempt {attempt.number} {'runs on' if runs else 'was given to'} {attempt.host}")
    if attempt.reason:
        lines.append(f"placed there: {attempt.reason}")
    if job.spec.alternatives:
        way = f"alternative {attempt.alternative}" if attempt.alternative else "its job says first"
        lines.append(f"runs as {way}: {needs_of_host(shape_of_attempt(job, attempt))}")
    if attempt.gpus:
        lines.append(f"has {given(attempt.gpus, gpu_share(spec_as(job.spec, attempt.alternative)))}")
    if line := gang_line(job, index):
        lines.append(line)
    host = state.hosts[attempt.host]
    if host.suspends(restartable=job.spec.restartable):
        lines.append(f"stands still: {host.shown_reason}")
    if job.suspension is not None:
        lines.append(f"stands still: its job is {suspended_reason(job)}")
    if job.cancelled:
        lines.append(_cancel_line(job))
    return lines


def waiting_reason(state: ClusterState, job: Job) -> str:
    """Returns in one line why tasks of a job wait; empty when there is nothing special to say."""
    if job.suspension is not None:
        return suspended_reason(job)
    if job.held:
        return "held until it is released"
    if job.asleep:
        return f"starts at {moment(job.spec.start_at)}, not before"
    if job.waits_for_jobs or (job.blocked and job.blocked == job.queued):
        return waiting_for(job) or next_attempt(job) or ending_line(job)
    if job.queued == 0:
        return "open: waits for more tasks" if job.open and not job.running else ""
    shape = job.shape
    if shape.on_host and shape.on_host not in state.hosts:
        return f"no host {shape.on_host} is known"
    if shape.group and not any(shape.group in host.groups for host in state.hosts.values()):
        return f"no host is in group {shape.group}"
    limit = job.spec.max_running
    if limit and len(job.running) + (job.shape.gang or 1) > limit:
        size = job.shape.gang
        of_gang = f" is {limit}, and a gang of {size} starts at once" if len(job.running) < limit else ""
        return f"{len(job.running)} of its tasks run, its own limit{of_gang}"
    return "; ".join(limit_reasons(state, job))


def suspended_reason(job: Job) -> str:
    """Returns in one line who suspended the job, when and why; empty if it is not suspended."""
    given = job.suspension
    if given is None:
        return ""
    by = f" by {given.by}" if given.by else ""
    return f"suspended{by} since {moment(given.at)}{': ' + given.reason if given.reason else ''}"


def next_attempt(job: Job) -> str:
    """Returns in one line when what failed is tried again; empty if nothing waits for that."""
    if not job.delayed:
        return ""
    return f"{len(job.delayed)} failed tasks are tried again, the first at {moment(min(job.delayed.values()))}"


def telling_task(job: Job) -> int:
    """Returns the task whose end says why the job did not succeed: of those that ended badly the first, else, unless
    the job itself was cancelled, one that was; -1 if there is none."""
    if job.first_bad >= 0 or job.cancelled or not job.is_final:
        return job.first_bad
    position = job.states.find(CANCELLED)
    return position if position < 0 else job.first + position


def _job_lines(state: ClusterState, job: Job) -> list[str]:
    """Of a job of one task all that can be said of the task is said."""
    counts = job.counts()
    alone = job.total == 1 and not job.open
    if job.is_final:
        lines = [
            f"{job.state()}: {counts.succeeded} of {counts.total} tasks succeeded, {counts.failed} failed, "
            f"{counts.cancelled} cancelled, {counts.lost} lost"
        ]
        if job.cancelled:
            lines.append(_cancel_line(job))
        told = job.first if alone else telling_task(job)
        if told >= 0:
            about = [line for line in explain(state, job, told) if line not in lines]
            lines += [f"task {job.id}.{told}: {line}" for line in about]
        return lines
    ended = (("failed", counts.failed), ("cancelled", counts.cancelled), ("lost", counts.lost))
    badly = "".join(f", {number} {word}" for word, number in ended if number)
    lines = [f"{job.state()}: {counts.running} tasks on hosts, {counts.queued} queued{badly}"]
    if alone:
        return [*lines, *explain(state, job, job.first)]
    if job.cancelled:
        lines.append(_cancel_line(job))
    elif job.queued or job.open or job.suspension is not None:
        lines += _waiting_lines(state, job)
    return lines


def _waiting_lines(state: ClusterState, job: Job) -> list[str]:
    reason = waiting_reason(state, job)
    lines = [reason] if reason else []
    if job.suspension is not None and job.held:
        lines.append("held until it is released, too")
    if job.delayed and not job.held and next_attempt(job) != reason:
        lines.append(next_attempt(job))
    if ending_line(job) not in ("", reason) and not job.held:
        lines.append(ending_line(job))
    if job.unmet and not job.held and not reason:
        lines.append(f"{job.blocked} tasks: {waiting_for(job)}")
    if job.queued == job.blocked or job.waits or job.suspension is not None:
        return lines
    if job.ready:
        lines += turn_lines(state, job)
    if job.shape.gang:
        lines.append(_gang_room(state, job))
    if not state.hosts:
        lines.append("there are no hosts")
    hosts = sorted(state.hosts.values(), key=lambda host: (-host.priority, host.name))
    lines += [f"{host.name}: {_fit(job, host)}" for host in hosts[:_MAX_HOSTS]]
    if len(hosts) > _MAX_HOSTS:
        fitting = sum(any(not misfit(way, host, host.slots) for way in job.shape.ways) for host in hosts)
        lines.append(f"… {len(hosts)} hosts in all, {fitting} of them fit")
    return lines


def _gang_room(state: ClusterState, job: Job) -> str:
    """Returns whether there is room for the next gang, and what is missing."""
    shape = job.shape
    size, weight = shape.gang, shape.weight
    now, empty = room_of_gang(shape, state.hosts.values())
    needs = f"a gang of {size} needs {size * weight:g} slots at once"
    if empty < size:
        return f"{needs}: never, as it is now; the hosts that fit have room for {empty} of its tasks when all are free"
    if now < size:
        return f"{needs}: {now * weight:g} are free on hosts that fit, room for {now} of its tasks"
    return f"{needs}: there is room for it"


def _fit(job: Job, host: Host) -> str:
    """Returns what stands between the job and the host, for each of its alternatives."""
    if not job.shape.others:
        return _fit_of(job.shape, host)
    first, *others = (_fit_of(way, host) for way in job.shape.ways)
    return "; ".join([first, *(f"alternative {number}: {words}" for number, words in enumerate(others, 1))])


def _fit_of(shape: Shape, host: Host) -> str:
    problem = misfit(shape, host, host.slots)
    if problem:
        return problem
    free = host.slots - host.used
    weight = shape.weight
    for name, number in shape.needs:
        taken, has = host.taken.get(name, 0), host.capacity(name)
        if name == GPUS and host.free(name, number, host.taken) < number:
            return f"fits, but {shortage(host.gpu_count, host.taken, number)}"
        if taken + number > has:
            return f"fits, but {taken} of {described(name, has)} are taken, a task needs {number}"
    if free >= weight:
        return f"fits, {free:g} of {host.slots} slots are free"
    needed = f", a task needs {weight:g}" if weight != 1 else ""
    return f"fits, but {min(host.used, host.slots):g} of {host.slots} slots are taken{needed}"


def _story_lines(job: Job, index: int) -> list[str]:
    story = job.stories.get(index - job.first)
    if story is None:
        return []
    dropped = story.last - len(story.attempts)
    lines = [f"{dropped} earlier attempts are no longer kept"] if dropped else []
    for past in story.attempts:
        why = f": {past.reason.strip().splitlines()[-1]}" if past.reason.strip() else ""
        lines.append(f"attempt {past.number} on {past.host}: {past.state}{why}; queued again")
    used = story.failures - (story.timeouts if job.spec.timeout_retries >= 0 else 0)
    if job.states[index - job.first] == QUEUED and job.spec.retries and used:
        lines.append(f"{used} of {job.spec.retries} retries are used")
    return lines


def _final_lines(job: Job, index: int) -> list[str]:
    record = job.outcome(index)
    if record is None:
        return []
    if not record.host:
        return ["cancelled while it was queued", *([_cancel_line(job)] if job.cancelled else [record.error])]
    ending = f"attempt {record.attempt} on {record.host}: {record.state}"
    if record.exit_code is not None:
        ending += f", exit code {record.exit_code}"
    if record.signal:
        ending += f", signal {record.signal}"
    if record.error.strip():
        ending += f": {record.error.strip().splitlines()[-1]}"
    lines = [ending, f"placed there: {record.reason}"] if record.reason else [ending]
    if record.tail is not None and record.tail.lost:
        lines.append(f"output not kept by the masters: {record.tail.lost}")
    return lines


def _cancel_line(job: Job) -> str:
    if job.cancel_reason:
        return f"the job was cancelled: it {job.cancel_reason}"
    return f"the job was cancelled{' by ' + job.cancelled_by if job.cancelled_by else ''}"
