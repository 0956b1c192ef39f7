"""Quotas: what the tasks of a user, a group or a tag take together, held by the log."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depalma.state import commands as c
from depalma.state.explain import explain
from depalma.state.quotas import amount, in_units

GIB = 1 << 30


def quota(bench, kind, name, most):
    bench.ok(c.SetQuota("", kind, name, most, bench.tick()))


def jobs_of(given_tasks):
    return sorted(ref[0] for _, ref in given_tasks)


def test_slots_of_a_user(bench):
    """Wide tasks count for more; others go on; what ends makes room."""
    bench.host("h1", slots=8)
    quota(bench, "user", "ann", {"slots": 3})
    wide, small = bench.submit(2, cpus=2, user="ann"), bench.submit(2, user="ann")
    bench.submit(3, user="bob")
    assert jobs_of(bench.dispatch()) == [1, 2, 3, 3, 3]
    reason = "quota of user ann: at most 3 slots at once, 3 are in use, a task needs 2"
    assert reason in explain(bench.state, wide)
    bench.finish((small.id, 0, 1))
    assert jobs_of(bench.dispatch()) == [2]
    bench.finish((wide.id, 0, 1))
    assert jobs_of(bench.dispatch()) == [1]


def test_everybody_and_one_of_his_own(bench):
    """`*` is each user's; his own counts instead."""
    bench.host("h1", slots=9)
    quota(bench, "user", "*", {"slots": 1})
    quota(bench, "user", "bob", {"slots": 2})
    for user in ("ann", "bob", "eve"):
        bench.submit(3, user=user)
    assert jobs_of(bench.dispatch()) == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("spec", "most", "runs"),
    [
        ({"gpus": 1}, {"gpus": 2}, 2),
        ({"gpus": 2}, {"gpus": 3}, 1),
        ({"gpus": 0.29}, {"gpus": 0.29}, 1),
        ({"gpus": 0.5}, {"gpus": 1.25}, 2),
        ({"gpus": 1}, {"gpus": 2.5}, 2),
        ({"memory_bytes": 2 * GIB}, {"memory_bytes": 5 * GIB}, 2),
        ({"resources": {"tape": 2}}, {"tape": 3}, 1),
        ({"gpus": 1}, {"tape": 0}, 3),
        ({"cpus": 0.25}, {"slots": 0.5}, 2),
        ({"gpus": 1}, {"slots": 2, "gpus": 1}, 1),
    ],
)
@pytest.mark.parametrize(("kind", "name"), [("group", "g"), ("tag", "t"), ("user", "ann")])
def test_what_is_counted(bench, kind, name, spec, most, runs):
    """By group and by tag as by user."""
    bench.host("h1", slots=8, gpus=8, groups=("g",), resources={"tape": 8})
    quota(bench, kind, name, most)
    bench.submit(3, group="g", tags=("t",), user="ann", **spec)
    assert len(bench.dispatch()) == runs
    bench.check_snapshot()
    assert bench.dispatch() == []
    quota(bench, kind, name, None)
    assert len(bench.dispatch()) == 3 - runs


def test_gangs_fit_whole(bench):
    """Under a quota that has room for some members none starts."""
    bench.host("h1", slots=8)
    quota(bench, "user", "*", {"slots": 5})
    gang = bench.submit(6, gang=3)
    assert len(bench.dispatch()) == 3
    assert "3 are in use, a gang of 3 needs 3" in "; ".join(explain(bench.state, gang))


def test_the_log_refuses_what_an_older_plan_says(bench):
    """A leader that planned before the quota was set is refused the difference."""
    bench.host("h1", slots=4)
    job = bench.submit(3, user="ann")
    (planned,) = bench.plan()
    quota(bench, "user", "ann", {"slots": 2})
    assert [word for _, word in bench.ok(planned).refused] == ["job_limit"]
    assert len(job.running) == 2


def test_what_a_quota_may_be(bench):
    """Each refusal names the field and what is allowed; a request that is repeated changes nothing."""

    def message(kind, name, most):
        return bench.refused(c.SetQuota("", kind, name, most, bench.tick())).message

    assert message("host", "h", {"slots": 1}) == "kind: 'host' given; allowed: tag, user, group"
    assert message("user", "", {"slots": 1}).startswith("name: '' given")
    assert message("user", "a", {}) == "quota: '0 numbers' given; allowed: 1 to 100 numbers of what is counted"
    assert message("user", "a", {"slots": -1.0}).startswith("quota.slots: -1.0 given; allowed: 0 to ")
    assert message("user", "a", {"slots": float("nan")}).startswith("quota.slots: nan given; allowed: 0 to ")
    allowed = "slots, gpus, memory_bytes, or the name of a resource of hosts"
    assert message("user", "a", {"gpu": 1.0}) == f"quota: 'gpu' given; allowed: {allowed}"
    assert message("user", "a", None) == "there is no quota of user a"
    bench.ok(c.SetQuota("r", "user", "a", {"slots": 1}, bench.tick()))
    bench.ok(c.SetQuota("r", "user", "a", {"slots": 2}, bench.tick()))
    assert bench.state.quotas.most == {("user", "a"): {"slots": 1}}


@settings(max_examples=40)
@given(data=st.data())
def test_never_more_than_the_quota(make_bench, data):
    """Whatever is submitted, ends, and changes in between."""
    bench = make_bench()
    bench.host("h1", slots=6, gpus=4)
    numbers = st.sampled_from([1, 2, 3])
    users = ("ann", "bob")
    for _ in range(data.draw(st.integers(5, 25))):
        match data.draw(st.sampled_from(["quota", "submit", "submit", "finish", "finish"])):
            case "quota":
                name = data.draw(st.sampled_from([*users, "*"]))
                gpus = st.sampled_from([1, 2, 0.29, 1.5])
                most = data.draw(st.fixed_dictionaries({}, optional={"slots": numbers, "gpus": gpus}))
                if most:
                    quota(bench, "user", name, most)
            case "submit":
                spec = {
                    "cpus": data.draw(st.sampled_from([0.5, 1, 2])),
                    "gpus": data.draw(st.sampled_from([0, 1, 0.3])),
                }
                bench.submit(data.draw(numbers), user=data.draw(st.sampled_from(users)), **spec)
            case "finish":
                live = sorted(bench.state.hosts["h1"].attempts)
                if live:
                    bench.finish(data.draw(st.sampled_from(live)))
        before = {user: dict(bench.state.quotas.used.get(("user", user), {})) for user in users}
        bench.dispatch()
        for user in users:
            most = bench.state.quotas.of(("user", user))
            jobs = [job for job in bench.state.jobs.values() if job.spec.user == user]
            for name, number in most.items():
                used = sum(len(job.running) * amount(job.shape, name) for job in jobs)
                assert used <= max(in_units(name, number), before[user].get(name, 0))
