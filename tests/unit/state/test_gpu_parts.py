"""Parts of GPUs: what may be asked for, which GPU is given, and that what needs a whole one does not starve."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depalma.dispatcher import HostRoom, plan
from depalma.gpuparts import WHOLE, normal, parts_of
from depalma.model import JobSpec
from depalma.policies.preempt import preemptions
from depalma.policies.reserve import SLACK_S
from depalma.state import commands as c
from depalma.state.explain import explain
from depalma.state.gpus import choose, may_have, short, usable
from depalma.state.quotas import in_words

LEVELS = st.lists(st.sampled_from([0, 10, 25, 30, 50, 75, 99, 100]), min_size=1, max_size=5)
PARTS = st.sampled_from([1, 10, 25, 30, 33, 50, 70, 99, 100, 200, 300])


def rooms(bench, **busy):
    return {
        h.name: HostRoom(h.incarnation, h.slots, busy_gpus=busy.get(h.name, ())) for h in bench.state.hosts.values()
    }


def gpus_of(job):
    return [attempt.gpus for attempt in job.running.values()]


class TestNumbers:
    """What may be asked for."""

    @pytest.mark.parametrize(
        ("gpus", "same", "parts"),
        [(0, 0, 0), (1, 1, 100), (3.0, 3, 300), (0.0, 0, 0), (0.29, 0.29, 29), (0.1 + 0.2, 0.3, 30), (0.99, 0.99, 99)],
    )
    def test_allowed(self, gpus, same, parts):
        """Whole ones are integers in the log, hundredths have no errors of rounding."""
        spec = JobSpec(kind="command", argv=("x",), gpus=gpus)
        assert (spec.gpus, type(spec.gpus), parts_of(spec.gpus)) == (same, type(same), parts)

    @pytest.mark.parametrize(
        "gpus", [1.5, 2.01, -1, -0.5, 0.005, 0.001, 0.999, 100_001, 1e300, *map(float, ("nan", "inf"))]
    )
    def test_refused(self, bench, gpus):
        """By name of the field, with what was given and what is allowed."""
        spec = JobSpec(kind="command", argv=("x",), gpus=gpus)
        allowed = "a whole number up to 100000, or a part of one GPU in hundredths: 0.01 to 0.99"
        message = bench.refused(c.SubmitJob("", spec, bench.now)).message
        assert message == f"gpus: {gpus!r} given; allowed: {allowed}"

    @pytest.mark.parametrize("gpus", [0, 2])
    def test_whole_ones_are_in_the_log_as_they_always_were(self, gpus):
        """So masters that know no parts, and journals, images and archives of theirs, go on."""
        was = msgspec.defstruct("Spec", [("kind", str), ("gpus", int, 0)], omit_defaults=True, kw_only=True)
        old = msgspec.msgpack.encode(was(kind="command", gpus=gpus))
        spec = msgspec.msgpack.decode(old, type=JobSpec)
        assert spec.gpus == gpus
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=was) == was(kind="command", gpus=gpus)
        assert msgspec.json.decode(b'{"kind": "command", "gpus": 2.0}', type=JobSpec).gpus.__class__ is int

    def test_whole_ones_are_planned_as_they_always_were(self, bench):
        """Only where a part is given does the command name GPUs."""
        bench.host("h1", slots=8, gpus=3)
        bench.submit(2, gpus=1)
        (command,) = bench.plan()
        assert command.gpus == ()
        bench.submit(1, gpus=0.5)
        assert {each.gpus for each in bench.plan()} == {((0,), (1,), (2,))}

    @given(st.integers(0, 100), st.integers(0, 10**5))
    def test_every_hundredth(self, hundredth, whole):
        """However it was computed."""
        assert parts_of(normal(hundredth * 0.01)) == parts_of(hundredth / 100) == hundredth
        assert parts_of(normal(float(whole))) == whole * WHOLE


class TestChoice:
    """Which GPU is given."""

    @given(LEVELS, PARTS, st.sets(st.integers(0, 4)))
    def test_the_fullest_with_room_or_wholly_free_ones(self, levels, parts, avoid):
        """Of the fullest ones the first; of free ones the first so many."""
        taken = {"gpus": sum(levels), **{gpu: level for gpu, level in enumerate(levels) if level}, 9: 50}
        given_gpus = choose(len(levels), taken, parts, avoid)
        if parts < WHOLE:
            free = [gpu for gpu, level in enumerate(levels) if level + parts <= WHOLE and gpu not in avoid]
            fullest = max((levels[gpu] for gpu in free), default=None)
            assert given_gpus == (None if not free else (next(gpu for gpu in free if levels[gpu] == fullest),))
        else:
            free = [gpu for gpu, level in enumerate(levels) if not level and gpu not in avoid]
            assert given_gpus == (tuple(free[: parts // 100]) if len(free) * 100 >= parts else None)
        assert given_gpus is None or may_have(len(levels), taken, parts, given_gpus)

    @given(LEVELS, PARTS)
    def test_what_is_usable_is_what_can_be_given(self, levels, parts):
        """One after the other, until none is left; what is short is nothing just when one is."""
        taken = dict(enumerate(levels))
        count = 0
        assert (short(len(levels), taken, parts) == 0) == (choose(len(levels), taken, parts) is not None) or (
            parts > len(levels) * WHOLE
        )
        expected = usable(len(levels), taken, parts)
        while (gpus := choose(len(levels), taken, parts)) is not None:
            for gpu in gpus:
                taken[gpu] += min(parts, WHOLE)
            count += 1
        assert count == expected // parts

    @given(st.lists(st.sampled_from([0, 25, 50, 100]), min_size=2, max_size=3), st.sampled_from([25, 50, 75, 100, 200]))
    def test_how_much_is_short(self, levels, parts):
        """The least that has to get free, found by trying all ways."""
        ways = product(*[range(0, level + 1, 25) for level in levels])
        least = min(sum(way) for way in ways if choose(len(levels), _less(levels, way), parts) is not None)
        assert short(len(levels), dict(enumerate(levels)), parts) == least

    @pytest.mark.parametrize("gpus", [(), (0, 0), (0, 1), (2,), (-1,), (0,)])
    def test_what_nobody_may_have(self, gpus):
        """A wrong number of them, one twice, one that is not there, one without room."""
        assert not may_have(2, {0: 60}, 50, gpus)


def _less(levels, way):
    return {gpu: level - freed for gpu, (level, freed) in enumerate(zip(levels, way, strict=True))}


def test_two_halves_share_one_gpu_and_a_third_waits(bench):
    """The host says what is taken; explain says why the third waits; what ends makes room."""
    host = bench.host("h1", slots=8, gpus=1)
    job = bench.submit(3, gpus=0.5)
    assert len(bench.dispatch()) == 2
    assert gpus_of(job) == [(0,), (0,)]
    assert host.taken == {"gpus": 100, 0: 100}
    assert "h1: fits, but no GPU has 0.5 free: all are taken" in explain(bench.state, job)
    assert "has 0.5 of GPU 0" in explain(bench.state, job, 1)
    bench.finish((job.id, 0, 1))
    assert host.taken == {"gpus": 50, 0: 50}
    assert len(bench.dispatch()) == 1
    bench.finish((job.id, 1, 1), (job.id, 2, 1))
    assert host.taken == {}


def test_others_stay_whole(bench):
    """Parts fill one GPU before they begin another; a whole one is never one with a part taken."""
    bench.host("h1", slots=8, gpus=3)
    parts = [bench.submit(1, gpus=gpus) for gpus in (0.3, 0.5, 0.6, 0.2, 0.4)]
    bench.dispatch()
    assert [gpus_of(job) for job in parts] == [[(0,)], [(0,)], [(1,)], [(0,)], [(1,)]]
    whole, wide = bench.submit(1, gpus=1), bench.submit(1, gpus=2)
    bench.dispatch()
    assert gpus_of(whole) == [(2,)]
    bench.finish((whole.id, 0, 1), (parts[2].id, 0, 1))
    assert bench.dispatch() == []
    line = "h1: fits, but 1 of 3 GPUs are wholly free, a task needs 2: GPU 1 has 0.6 free"
    assert line in explain(bench.state, wide)
    third = bench.submit(1, gpus=0.9)
    bench.dispatch()
    assert "h1: fits, but no GPU has 0.9 free: GPU 1 has 0.6 free" not in explain(bench.state, third)  # GPU 2 is free


def test_explained_host_by_host(bench):
    """What each has free; one without GPUs is said to have none."""
    bench.host("h1", slots=8, gpus=2)
    bench.host("h2", slots=8)
    bench.submit(2, gpus=0.6, on_host="h1")
    bench.dispatch()
    job = bench.submit(1, gpus=0.5)
    assert bench.dispatch() == []
    lines = explain(bench.state, job)
    assert "h1: fits, but no GPU has 0.5 free: GPU 0 has 0.4 free, GPU 1 has 0.4 free" in lines
    assert "h2: has 0 GPUs, a task needs 0.5" in lines


def test_what_something_else_uses_is_not_given_but_what_we_share_is(bench):
    """A GPU of which our own tasks have a part is not avoided."""
    bench.host("h1", slots=8, gpus=3)
    job = bench.submit(4, gpus=0.5)
    for command in plan(bench.state, rooms(bench, h1=(0, 2)), {}, bench.now, 1, 3):
        bench.ok(command)
    assert gpus_of(job) == [(1,), (1,)]
    assert plan(bench.state, rooms(bench, h1=(0, 2)), {}, bench.now, 1, 9) == []
    bench.finish((job.id, 0, 1))
    (command,) = plan(bench.state, rooms(bench, h1=(0, 1, 2)), {}, bench.now, 1, 9)
    bench.ok(command)
    assert gpus_of(job) == [(1,), (1,)]
    late = c.AssignTasks(1, "h1", "h1-1", ((job.id, 3, 1),), bench.tick(), "", (0,), ((0,),))
    assert bench.ok(late).refused == (((job.id, 3, 1), "no_room"),)


def test_what_was_planned_is_what_is_done(bench):
    """Commands of a round are in another order than what was placed: by their own choice, one would not fit."""
    bench.host("h1", slots=8, gpus=2, labels={"a": "b"})
    wished = bench.submit(1, gpus=0.6, prefer=("a=b",))
    small = [bench.submit(1, gpus=gpus) for gpus in (0.5, 0.4, 0.5)]
    assert len(bench.dispatch()) == 4
    assert [gpus_of(job) for job in (wished, *small)] == [[(0,)], [(1,)], [(0,)], [(1,)]]


def test_a_gang_of_parts(bench):
    """All of it at once, or nothing."""
    bench.host("h1", slots=8, gpus=1)
    bench.host("h2", slots=8, gpus=1)
    bench.submit(1, gpus=0.4)
    bench.dispatch()
    gang = bench.submit(4, gpus=0.5, gang=-1)
    assert bench.dispatch() == []
    bench.finish((1, 0, 1))
    assert len(bench.dispatch()) == 4
    assert sorted((attempt.host, attempt.gpus) for attempt in gang.running.values()) == [
        ("h1", (0,)), ("h1", (0,)), ("h2", (0,)), ("h2", (0,)),
    ]  # fmt: skip


def test_a_gang_is_refused_if_what_was_planned_is_gone(bench):
    """Whole or not at all, also when only one of its GPUs is another's by now."""
    bench.host("h1", slots=8, gpus=2)
    gang = bench.submit(3, gpus=0.6, gang=-1)
    assert bench.dispatch() == []
    bench.ok(c.SetHost("", "h1", bench.tick(), None, None, None, 3))
    (command,) = bench.plan()
    assert command.gpus == {"h1": ((0,), (1,), (2,))}
    bench.submit(1, gpus=0.5, priority=1)
    bench.assign((2, 0, 1))
    assert {word for _, word in bench.ok(command).refused} == {"no_room"}
    assert gang.running == {}


def test_room_is_made_for_a_part(bench):
    """By what lies on one GPU, and no more of it than needed."""
    bench.host("h1", slots=8, gpus=2)
    for gpus in (0.5, 0.9, 0.4):
        bench.submit(1, gpus=gpus)
        bench.dispatch()
    wanting = bench.submit(1, gpus=0.6, priority=1, preempt=True)
    assert [each.refs for each in preemptions(bench.state, rooms(bench), ())] == [
        ((2, 0, 1),)
    ]  # 3 began last, and stays
    bench.cancel(wanting.id)
    bench.submit(1, gpus=1, priority=1, preempt=True)
    (both,) = preemptions(bench.state, rooms(bench), ())
    assert both.refs == ((2, 0, 1),)
    assert list(preemptions(bench.state, rooms(bench), both.refs)) == []


def test_room_is_made_beside_what_something_else_uses(bench):
    """Its GPU is not free for the job, so a task of ours ends."""
    bench.host("h1", slots=8, gpus=2)
    bench.submit(1, gpus=1)
    bench.dispatch()
    bench.submit(1, gpus=1, priority=1, preempt=True)
    assert list(preemptions(bench.state, rooms(bench), ())) == []
    assert [each.refs for each in preemptions(bench.state, rooms(bench, h1=(1,)), ())] == [((1, 0, 1),)]


def test_a_quota_of_parts(bench):
    """Counted exactly, and told as people count."""
    bench.ok(c.SetQuota("", "user", "ann", {"gpus": 0.3}, bench.tick()))
    bench.host("h1", slots=99, gpus=9)
    job = bench.submit(9, gpus=0.1, user="ann")
    assert len(bench.dispatch()) == 3
    assert "quota of user ann: at most 0.3 GPUs at once, 0.3 are in use, a task needs 0.1" in explain(bench.state, job)
    assert in_words("gpus", 250) == "2.5 GPUs"


class TestKept:
    """A host that is kept for a task that needs a whole GPU."""

    def test_parts_do_not_starve_a_whole_one(self, bench):
        """However many of them come, and although the sum of what is free would be enough."""
        bench.host("h1", slots=99, gpus=2)
        bench.submit(2, gpus=0.6)
        bench.dispatch()
        whole = bench.submit(1, gpus=1)
        bench.submit(99, gpus=0.4)
        assert bench.dispatch() == []
        bench.submit(3)
        assert [ref[0] for _, ref in bench.dispatch()] == [4, 4, 4]  # it is kept for what costs the waiting one nothing
        bench.finish((1, 1, 1))
        assert next(ref[0] for _, ref in bench.dispatch() if ref[0] == whole.id)
        assert gpus_of(whole) == [(1,)]

    def test_what_ends_before_may_run_before(self, bench):
        """By its time limit: the whole one starts no later for it."""
        bench.host("h1", slots=99, gpus=1)
        long = bench.submit(1, gpus=0.5, timeout_s=1000, grace_s=0)
        bench.dispatch()
        whole = bench.submit(1, gpus=1)
        bench.submit(1, gpus=0.5, timeout_s=2000, grace_s=0)
        brief = bench.submit(1, gpus=0.5, timeout_s=128, grace_s=0)
        assert [ref[0] for _, ref in bench.dispatch()] == [brief.id]
        bench.finish((brief.id, 0, 1), (long.id, 0, 1))
        assert bench.dispatch()[0][1][0] == whole.id

    def test_a_part_beside_what_the_waiting_one_needs(self, bench):
        """A host with a GPU to spare gives it away while the task waits for memory."""
        bench.host("h1", slots=99, gpus=3)
        bench.submit(1, memory_bytes=6 << 30)
        bench.dispatch()
        waiting = bench.submit(1, memory_bytes=4 << 30, gpus=2)
        small = bench.submit(5, gpus=0.3)
        assert [ref[0] for _, ref in bench.dispatch()] == [small.id] * 3
        assert gpus_of(small) == [(0,)] * 3
        bench.finish((1, 0, 1))
        assert [ref[0] for _, ref in bench.dispatch()] == [waiting.id]
        assert gpus_of(waiting) == [(1, 2)]

    @settings(max_examples=30)
    @given(data=st.data())
    def test_the_first_is_never_delayed(self, make_bench, data):
        """What runs when it becomes first ends by its time limit: by then the first has started, whatever comes."""
        bench = make_bench()
        for number in range(data.draw(st.integers(1, 2))):
            bench.host(f"h{number}", slots=99, gpus=data.draw(st.integers(1, 2)))
        some = st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.9, 1])
        ends = {}
        for _ in range(data.draw(st.integers(1, 8))):
            limit_s = data.draw(st.sampled_from([64, 128, 256, 512]))
            bench.submit(1, gpus=data.draw(some), timeout_s=limit_s, grace_s=0)
            ends |= {ref: (host, bench.now + limit_s) for host, ref in bench.dispatch()}
        first = bench.submit(1, gpus=data.draw(st.sampled_from([0.9, 1, 1])), priority=1)
        by = max((at for _, at in ends.values()), default=bench.now)
        while not first.running:
            for _ in range(data.draw(st.integers(0, 3))):
                bench.submit(1, gpus=data.draw(some), timeout_s=data.draw(st.sampled_from([0, 8, 64, 512])), grace_s=0)
            for host, ref in bench.dispatch():
                limit_s = bench.state.jobs[ref[0]].spec.timeout_s
                ends[ref] = host, bench.now + (limit_s or 10_000)
            if first.running:
                break
            assert bench.now <= by + SLACK_S
            bench.tick(16)
            for ref in [ref for ref, (_, at) in ends.items() if at <= bench.now]:
                host, _ = ends.pop(ref)
                bench.finish(ref, host=host)


@settings(max_examples=30)
@given(data=st.data())
def test_a_gpu_is_never_given_more_than_once(make_bench, data):
    """Whatever is submitted, ends, and comes; every plan is accepted, and twins and snapshots are equal."""
    bench = make_bench()
    for number in (1, 2):
        bench.host(f"h{number}", slots=9, gpus=data.draw(st.integers(1, 3)), labels={"a": "b"} if number == 1 else {})
    for _ in range(data.draw(st.integers(4, 12))):
        if data.draw(st.booleans()):
            gpus = data.draw(st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.7, 0.99, 1, 2]))
            gang = data.draw(st.sampled_from([0, 0, 2]))
            extra = data.draw(st.sampled_from([{}, {"prefer": ("a=b",)}, {"pack": True}, {"priority": 1}]))
            bench.submit(data.draw(st.sampled_from([2, 4])), cpus=0.25, gpus=gpus, gang=gang, **extra)
        live = sorted((host.name, ref) for host in bench.state.hosts.values() for ref in host.attempts)
        for host, ref in data.draw(st.lists(st.sampled_from(live), max_size=3, unique=True)) if live else ():
            bench.finish(ref, host=host)
        bench.dispatch()  # checks the invariants after each command, and that nothing is refused
        busy = data.draw(st.sets(st.integers(0, 2), max_size=1))
        for command in plan(bench.state, rooms(bench, h1=tuple(busy)), {}, bench.now, 1, 9):
            assert bench.ok(command).refused == ()
    bench.check_snapshot()
