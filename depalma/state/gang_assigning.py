"""The command that gives a whole gang to hosts, or nothing of it. [pure]"""

from __future__ import annotations

from depalma.model import AttemptRef
from depalma.state.attempts import MAX_REASON, host_refusal, job_terms, task_problem
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, AssignOutcome, Rejected
from depalma.state.gangs import GangRun, gang_of, members
from depalma.state.gpus import without
from depalma.state.hosts import Host
from depalma.state.jobs import Attempt, Job
from depalma.state.order_commands import AssignGang
from depalma.state.shapes import held


def assign_gang(state: ClusterState, command: AssignGang) -> Applied | Rejected:
    """Gives each member to its host, if all may go where they are to."""
    if command.term < state.term:
        return Rejected("stale_term", f"assigned by a leader of term {command.term}, term {state.term} has begun")
    refs = [ref for _, _, given in command.parts for ref in given]
    refusal = _refusal(state, command, refs)
    if refusal:
        return Applied(AssignOutcome((), state.version, tuple((ref, refusal) for ref in refs)), state.version)
    state.term = command.term
    job = state.jobs[refs[0][0]]
    fence, at, reason = state.version, command.at, command.reason[:MAX_REASON]
    for name, incarnation, given in command.parts:
        host = state.hosts[name]
        for ref, gpus in zip(given, _gpus(job, host, command, len(given)) or (), strict=True):
            attempt = Attempt(ref[2], name, incarnation, at, None, fence, reason, gpus)
            job.assign(ref[1], attempt)
            host.put(ref, attempt, job.shape)
        state.events.add("task.assigned", at, host=name, refs=given, detail={"reason": reason, "fence": fence})
        state.changes.hosts.add(name)
    hosts = {ref[1]: name for name, _, given in command.parts for ref in given}
    job.gangs[gang_of(job, refs[0][1])] = GangRun(tuple(hosts[index] for index in sorted(hosts)), len(refs))
    state.settle(job, at)
    return Applied(AssignOutcome(tuple(refs), fence), state.version)


def _refusal(state: ClusterState, command: AssignGang, refs: list[AttemptRef]) -> str:
    """Returns the word for why not all of them may go where they are to; empty if they may."""
    job = state.jobs.get(refs[0][0]) if refs else None
    if job is None:
        return "unknown_job"
    if not job.shape.gang or any(ref[0] != job.id for ref in refs):
        return "not_a_gang"
    problem = next(filter(None, (task_problem(job, ref[1], ref[2]) for ref in refs)), "")
    if problem:
        return problem
    positions = sorted(ref[1] - job.first for ref in refs)
    if positions != list(members(job, gang_of(job, refs[0][1]))):
        return "not_a_gang"
    if len({name for name, _, _ in command.parts}) < len(command.parts):
        return "host_twice"
    return next(filter(None, (_part_refusal(state, job, command, *part, len(refs)) for part in command.parts)), "")


def _part_refusal(
    state: ClusterState,
    job: Job,
    command: AssignGang,
    name: str,
    incarnation: str,
    given: tuple[AttemptRef, ...],
    size: int,
) -> str:
    refusal = host_refusal(state, name, incarnation)
    if refusal:
        return refusal
    host = state.hosts[name]
    barred, room = job_terms(state, job, host, job.shape)
    if barred:
        return barred
    if room < size:
        return "job_limit"
    taken = without(host.taken, command.avoid.get(name, ()))
    fits = all(host.free(need, number, taken) >= number * len(given) for need, number in job.shape.needs)
    return "" if fits and _gpus(job, host, command, len(given)) is not None else "no_room"


def _gpus(job: Job, host: Host, command: AssignGang, members: int) -> list[tuple[int, ...]] | None:
    """Returns the GPUs of each of so many members on a host; None if one cannot have its own."""
    taken = without(host.taken, command.avoid.get(host.name, ()))
    wanted = command.gpus.get(host.name, ())
    chosen: list[tuple[int, ...]] = []
    for place in range(members):
        gpus = host.choose_gpus(job.shape, taken, wanted=wanted[place] if place < len(wanted) else ())
        if gpus is None:
            return None
        for name, number in held(job.shape.needs, gpus):
            taken[name] = taken.get(name, 0) + number
        chosen.append(gpus)
    return chosen
