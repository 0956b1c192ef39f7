"""The command that creates a whole graph of jobs, or nothing of it. [pure]"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from depalma.model import Dependency, JobSpec
from depalma.state.checks import bad_field, bad_spec
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected
from depalma.state.dependencies import bad_each, begin
from depalma.state.job_commands import SubmitGraph
from depalma.state.submissions import create

MAX_GRAPH = 10_000


def submit_graph(state: ClusterState, command: SubmitGraph) -> Applied | Rejected:
    """Creates all jobs, in the order in which they are given. Answers Applied(their ids)."""
    if known := state.answers.find("graph", command.request):
        return Applied(known.value, state.version)
    specs = command.specs
    if wrong := bad_graph(specs) or _bad_for(state, specs):
        return wrong
    base = state.next_job
    jobs = []
    for spec in specs:
        after = tuple(_resolved(one, base) for one in spec.after)
        jobs.append(create(state, msgspec.structs.replace(spec, after=after), command.at))
    for job in jobs:
        begin(state, job, command.at)
    for job in jobs:
        state.settle(job, command.at)
    answer = tuple(job.id for job in jobs)
    state.answers.keep("graph", command.request, answer, command.at)
    return Applied(answer, state.version)


def bad_graph(specs: Sequence[JobSpec]) -> Rejected | None:
    """Refuses a graph for what is wrong whatever the cluster: a bad spec, a member that is not there, a cycle."""
    if not 1 <= len(specs) <= MAX_GRAPH:
        return bad_field("jobs", f"{len(specs)} jobs", f"1 to {MAX_GRAPH}")
    for place, spec in enumerate(specs):
        if wrong := bad_spec(spec):
            return Rejected(wrong.code, f"{_label(specs, place)}: {wrong.message}")
        missing = next((one.job for one in spec.after if one.job < -len(specs)), None)
        if missing is not None:
            allowed = f"-1 to -{len(specs)} for a job of the graph, or the id of a job that is there"
            return _within(specs, place, bad_field("after.job", missing, allowed))
    cycle = find_cycle([[-1 - one.job for one in spec.after if one.job < 0] for spec in specs])
    if not cycle:
        return None
    words = " after ".join(_label(specs, place) for place in cycle)
    return Rejected("bad_field", f"after: a cycle: {words}; allowed: a graph in which each job can start some time")


def _bad_for(state: ClusterState, specs: Sequence[JobSpec]) -> Rejected | None:
    for place, spec in enumerate(specs):
        unknown = next((one.job for one in spec.after if one.job >= 0 and one.job not in state.jobs), None)
        if unknown is not None:
            message = f"{_label(specs, place)}: after: there is no job {unknown} (or it is no longer kept)"
            return Rejected("unknown_job", message)
        wrong = bad_each(spec, lambda job: specs[-1 - job] if job < 0 else state.jobs[job].spec)
        if wrong:
            return _within(specs, place, wrong)
        if not -1 <= spec.code_index <= state.code_index:
            allowed = f"-1 (newest) to {state.code_index}"
            return _within(specs, place, bad_field("code_index", spec.code_index, allowed))
    return None


def find_cycle(after: Sequence[Sequence[int]]) -> list[int]:
    """Returns a cycle, its first member again at the end; empty when there is none. `after[n]`: what n waits for."""
    done = [False] * len(after)
    for start in range(len(after)):
        path: dict[int, int] = {}  #: member → how many of what it waits for were looked at, in the order of the path
        node = start
        while not done[node]:
            at = path.setdefault(node, 0)
            if at < len(after[node]):
                path[node] = at + 1
                node = after[node][at]
                if node in path and not done[node]:
                    members = list(path)
                    return [*members[members.index(node) :], node]
                continue
            done[node] = True
            del path[node]
            if path:
                node = next(reversed(path))
    return []


def _resolved(one: Dependency, base: int) -> Dependency:
    """Returns the dependency with the id that its job has now."""
    return msgspec.structs.replace(one, job=base - 1 - one.job) if one.job < 0 else one


def _label(specs: Sequence[JobSpec], place: int) -> str:
    return specs[place].name or f"jobs.{place}"


def _within(specs: Sequence[JobSpec], place: int, wrong: Rejected) -> Rejected:
    return Rejected(wrong.code, f"{_label(specs, place)}: {wrong.message}")
