"""Gangs in the replicated state: assigned whole or not at all, ended together, run again together."""

from __future__ import annotations

import msgspec
import pytest

from depalma.model import Dependency, JobSpec
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.explain import explain
from depalma.state.gangs import rest_of_gangs


def states(job):
    return [job.state_of(index) for index in range(job.first, job.first + job.total)]


def started(bench, count=2, **spec):
    """Returns a job of one gang, one member on each of so many hosts."""
    for number in range(1, count + 1):
        bench.host(f"h{number}", slots=2)
    job = bench.submit(count, gang=-1, **spec)
    assert sorted(host for host, _ in bench.dispatch()) == [f"h{number}" for number in range(1, count + 1)]
    return job


def host_of(job, index):
    return job.running[index].host


def end(bench, job, index, outcome="succeeded", **report):
    """Reports the end of a member from where it is."""
    attempt = job.running[index]
    ref = (job.id, index, attempt.number)
    assert bench.finish(ref, outcome=outcome, host=attempt.host, **report).recorded == (ref,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"gang": -2}, "gang: -2 given; allowed: 1 to 1000, or -1 (all tasks)"),
        ({"gang": 1001, "count": 1001}, "gang: 1001 given; allowed: 1 to 1000, or -1 (all tasks)"),
        ({"gang": -1, "count": 1001}, "gang: 1001 given; allowed: 1 to 1000, or -1 (all tasks)"),
        ({"gang": 3, "count": 4}, "gang: 3 given; allowed: a number that divides that of the tasks, 4"),
        (
            {"gang": 2, "open": True},
            "gang: 2 given; allowed: none in an open job: a gang is complete at once",
        ),
        ({"gang": 4, "max_running": 3}, "max_running: 3 given; allowed: at least 4, as many as start at once"),
        ({"gang": 4, "limits": {"db": 2}}, "limits.db: 2 given; allowed: at least 4, as many as start at once"),
        (
            {"gang": 4, "after": (Dependency(1, each=True),)},
            "after.each: True given; allowed: not in a gang: it waits for whole jobs only",
        ),
    ],
)
def test_what_could_never_start_is_refused(bench, spec, message):
    """By the field, with what is allowed."""
    bench.submit(4)
    made = JobSpec(**{"kind": "command", "argv": ("x",), "count": 4} | spec)
    assert bench.refused(c.SubmitJob("", made, bench.tick())).message == message


def test_nobody_waits_for_a_single_member(bench):
    """It may run again after it has succeeded; of the whole job one may wait, also in a graph."""
    bench.submit(2, gang=2)
    each = JobSpec(kind="command", argv=("x",), count=2, after=(Dependency(1, each=True),))
    allowed = "after.each: True given; allowed: false for job 1, whose tasks are in gangs"
    assert bench.refused(c.SubmitJob("", each, bench.tick())).message == allowed
    gang = JobSpec(kind="command", argv=("x",), count=2, gang=-1)
    in_graph = msgspec.structs.replace(each, after=(Dependency(-1, each=True),))
    assert "after.each" in bench.refused(jc.SubmitGraph("", (gang, in_graph), bench.tick())).message
    assert bench.submit(2, after=(Dependency(1),)).waits


def test_one_command_gives_all_or_nothing(bench):
    """Whatever is wrong with one part, nothing is given; and single tasks of a gang are never given."""
    bench.host("h1", gpus=1)
    bench.host("h2", gpus=1)
    job = bench.submit(2, gang=2, gpus=1)
    other = bench.submit(1)
    (gang, *_) = bench.plan()
    assert isinstance(gang, c.AssignGang)
    (h1, life, one), (h2, life_2, two) = gang.parts

    def refusal(*parts):
        outcome = bench.ok(c.AssignGang(1, parts, bench.tick()))
        assert outcome.accepted == ()
        assert not job.running
        return {word for _, word in outcome.refused}

    assert refusal((h1, life, one)) == {"not_a_gang"}
    assert refusal((h1, life, one), (h2, "h2-7", two)) == {"stale_incarnation"}
    assert refusal((h1, life, one), ("h9", "h9-1", two)) == {"unknown_host"}
    assert refusal((h1, life, (*one, *two))) == {"no_room"}
    assert refusal((h1, life, one), (h2, life_2, ((job.id, 1, 2),))) == {"stale_attempt"}
    assert refusal((h1, life, one), (h2, life_2, ((other.id, 0, 1),))) == {"not_a_gang"}
    assert refusal((h1, life, one), (h1, life, two)) == {"host_twice"}
    assert bench.assign(*one).refused == ((one[0], "gang"),)
    bench.ok(c.SetLimit("", "user", "*", 1, bench.tick()))
    assert refusal(*gang.parts) == {"job_limit"}
    bench.ok(c.SetLimit("", "user", "*", None, bench.tick()))
    assert bench.refused(c.AssignGang(-1, gang.parts, bench.tick())).code == "stale_term"

    assert bench.ok(gang).accepted == (*one, *two)
    assert [attempt.gpus for attempt in job.running.values()] == [(0,), (0,)]
    assert job.gangs[0].hosts == ("h1", "h2")
    assert bench.ok(gang).accepted == ()
    assert "rank 1 of a gang of 2: h1 1, h2 1" in explain(bench.state, job, 1)
    assert "placed there: gang of 2, all at once: h1 1, h2 1" in explain(bench.state, job, 1)


def test_a_gang_that_succeeds(bench):
    """Members end when they do; nobody is told to end."""
    job = started(bench)
    end(bench, job, 0)
    assert rest_of_gangs(job) == {}
    end(bench, job, 1)
    assert (states(job), job.gangs, job.state()) == (["succeeded"] * 2, {}, "succeeded")


def test_a_lost_host_ends_the_rest_and_all_run_again(bench):
    """Also those that had succeeded; it is one loss for the gang, whoever was lost."""
    job = started(bench, 4, lost_retries=1)
    end(bench, job, 0)
    lost = host_of(job, 1)
    bench.lose(lost)
    reason = f"gang member lost: task 1.1 on {lost}: host {lost} was lost: silent"
    assert {refs[0][:2] for refs in rest_of_gangs(job).values()} == {(1, 2), (1, 3)}
    assert {why for _, why in rest_of_gangs(job)} == {reason}
    assert states(job) == ["succeeded", "blocked", "assigned", "assigned"]
    assert f"runs again when the rest of its gang has ended: {reason}" in explain(bench.state, job)
    bench.host("h5", slots=9)
    assert bench.plan() == []
    bench.check_snapshot()

    end(bench, job, 2, "cancelled", error=reason)
    bench.lose(host_of(job, 3))
    assert states(job) == ["queued"] * 4
    assert [story.losses for story in job.stories.values()] == [1] * 4
    assert f"attempt 1 on h1: succeeded: {reason}; queued again" in explain(bench.state, job, 0)
    assert len(bench.dispatch()) == 4
    assert {attempt.number for attempt in job.running.values()} == {2}

    bench.lose(host_of(job, 1))
    assert (job.state(), states(job).count("lost")) == ("running" if job.running else "lost", 4 - len(job.running))


def test_a_failure_uses_up_one_retry_of_the_gang(bench):
    """Two members that fail in the same run count once, another one in the next run counts again."""
    job = started(bench, 3, retries=1, backoff_s=10.0)
    end(bench, job, 0, "failed", exit_code=3)
    assert job.gangs[0].ending == f"gang member failed: task 1.0 on {job.gangs[0].hosts[0]}: exit code 3"
    end(bench, job, 1, "failed", exit_code=4)
    end(bench, job, 2)
    assert states(job) == ["blocked"] * 3
    assert [story.failures for story in job.stories.values()] == [1] * 3
    assert "3 failed tasks are tried again" in explain(bench.state, job)[1]
    bench.ok(jc.PassTime(bench.tick(11), 1))
    assert states(job) == ["queued"] * 3

    bench.dispatch()
    end(bench, job, 2, "failed", exit_code=5)
    assert [word for word in states(job) if word != "assigned"] == ["failed"]
    (reason,) = {why for _, why in rest_of_gangs(job)}
    end(bench, job, 1)
    end(bench, job, 0, "cancelled", error=reason)
    assert (states(job), job.state(), job.exit_code) == (["cancelled", "succeeded", "failed"], "failed", 5)
    assert reason in explain(bench.state, job, 0)[-2]


def test_retry_of_the_failed_ones_takes_the_whole_gang(bench):
    """And leaves other gangs of the job alone."""
    bench.host("h1", slots=4)
    job = bench.submit(4, gang=2)
    bench.dispatch()
    end(bench, job, 3)
    end(bench, job, 2)
    end(bench, job, 0, "failed")
    assert bench.ok(jc.RetryJobs("", (job.id,), bench.tick())) == ()  # the rest of it is still there
    end(bench, job, 1, "cancelled")
    assert bench.ok(jc.RetryJobs("", (job.id,), bench.tick())) == (job.id,)
    assert states(job) == ["queued", "queued", "succeeded", "succeeded"]
    assert sorted(ref for _, ref in bench.dispatch()) == [(1, 0, 2), (1, 1, 2)]
    end(bench, job, 0)
    end(bench, job, 1)
    assert job.state() == "succeeded"


def test_one_that_may_not_run_twice_is_not_run_twice(bench):
    """A lost member ends the gang for good, also when it was to run again for another reason."""
    job = started(bench, 3, retries=1, restartable=False)
    lost = host_of(job, 2)
    end(bench, job, 0, "failed")
    assert states(job) == ["blocked", "assigned", "assigned"]
    bench.lose(lost)
    assert states(job) == ["cancelled", "assigned", "lost"]
    end(bench, job, 1, "cancelled")
    assert (states(job), job.state()) == (["cancelled", "cancelled", "lost"], "lost")


@pytest.mark.parametrize("outcome", ["moved", "returned"])
def test_a_member_that_makes_way_costs_no_retry(bench, outcome):
    """Its host was drained, or could not start it: the gang runs again, and nothing is counted."""
    job = started(bench, lost_retries=0)
    bench.start((1, 0, 1), host=host_of(job, 0))
    end(bench, job, 0, outcome, error="drained")
    assert job.gangs[0].ending.startswith(f"gang member {outcome}: task 1.0 on ")
    end(bench, job, 1, "cancelled")
    assert states(job) == ["queued"] * 2
    assert all((story.failures, story.losses) == (0, 0) for story in job.stories.values())


def test_cancelled_while_it_ends(bench):
    """Nothing runs again; what was taken off its host is cancelled, too."""
    job = started(bench, 3, retries=1)
    end(bench, job, 0, "failed")
    bench.cancel(job.id)
    assert states(job) == ["cancelled", "assigned", "assigned"]
    end(bench, job, 1, "failed")
    end(bench, job, 2, "cancelled")
    assert (states(job), job.gangs) == (["cancelled"] * 3, {})


def test_held_while_it_ends(bench):
    """It runs again once it is released."""
    job = started(bench, 2, retries=1)
    bench.ok(jc.HoldJobs("", (job.id,), bench.tick()))
    end(bench, job, 0, "failed")
    end(bench, job, 1)
    assert states(job) == ["held"] * 2
    bench.ok(jc.ReleaseJobs("", (job.id,), bench.tick()))
    assert len(bench.dispatch()) == 2


def test_reports_on_disk_of_a_restarted_agent(bench):
    """A member that had ended before its agent was started anew is not lost."""
    job = started(bench)
    host = host_of(job, 0)
    bench.ok(c.HostUp(host, f"{host}-2", bench.state.hosts[host].facts, bench.tick(), -1, ((1, 0, 1),)))
    assert job.gangs[0].ending == ""
    bench.finish((1, 0, 1), host=host, life=2)
    end(bench, job, 1)
    assert job.state() == "succeeded"


def test_what_is_missing_is_explained(bench):
    """How many slots are free, or that there never will be enough; limits name the gang."""
    bench.host("h1", slots=3)
    bench.host("h2", slots=3)
    bench.submit(1)
    bench.dispatch()
    job = bench.submit(6, gang=-1)
    assert "a gang of 6 needs 6 slots at once: 5 are free on hosts that fit, room for 5 of its tasks" in explain(
        bench.state, job
    )
    wide = bench.submit(3, gang=-1, cpus=3)
    never = "never, as it is now; the hosts that fit have room for 2 of its tasks when all are free"
    assert f"a gang of 3 needs 9 slots at once: {never}" in explain(bench.state, wide)
    bench.ok(c.SetLimit("", "user", "*", 5, bench.tick()))
    limit = "limit of each user (*): 5 at once, 1 are on hosts; a gang of 6 starts at once"
    assert limit in explain(bench.state, job)
    bench.ok(c.SetLimit("", "user", "*", None, bench.tick()))
    bench.finish((1, 0, 1))
    assert "a gang of 6 needs 6 slots at once: there is room for it" in explain(bench.state, job)
    limited = bench.submit(4, gang=2, max_running=3)
    bench.cancel(job.id, wide.id)
    bench.dispatch()
    assert explain(bench.state, limited)[1] == "2 of its tasks run, its own limit is 3, and a gang of 2 starts at once"
