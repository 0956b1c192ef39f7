"""Clients of a cluster of the product's own state machine. They submit, add, close, cancel and read jobs, ask again
with the same request id until they are answered, and write down everything that was said.

A client asks again when it was told that nobody knows the outcome, and when it has waited for too long: then two
requests with one id are under way. Whatever is answered to one of them must be the same (the first answer). One that
gives up leaves its operation open: it may still take effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Literal

import msgspec

from depalma import items
from depalma.alternatives import Alternative
from depalma.consensus.errors import NotLeader
from depalma.model import JobSpec, Payload
from depalma.state import commands as c
from depalma.state.machine import Machine, digest_of
from depalma.state.views import job_view
from depalma.testing.chaos import checks
from depalma.testing.chaos.load import KnownJob, seen
from depalma.testing.cluster import Answer, SimCluster, Violation
from depalma.testing.history import History, Operation
from depalma.testing.job_model import REFUSED
from depalma.testing.sim_hosts import SimHosts
from depalma.testing.sim_processes import SURE, result_of

CLIENTS = 5
ADDED = 3
#: jobs that clients still talk about
FRESH = 8
#: a client that has waited so long asks again, and after one of these it gives up
IMPATIENT_S = 0.4
DEADLINES_S = (0.3, 4.0, 4.0)
PAUSE_S = 0.05
_ARGUMENTS = Payload(inline=items.pack([b"x"] * ADDED), size_bytes=len(items.pack([b"x"] * ADDED)))

#: what a client sends: a command made with a master's time of day, or None for a read
Make = Callable[[float], c.AnyCommand] | None


class JobLoad:
    """Clients and agents of one cluster, and the judgement of what they were told."""

    def __init__(self, cluster: SimCluster[Machine], random: Random) -> None:
        self.cluster = cluster
        self.random = random
        self.history = History(now=cluster.clock.monotonic)
        self.hosts = SimHosts(cluster, random)
        self.raging = True
        #: request → the answer that was given to it first
        self.first_answers: dict[str, object] = {}
        self.jobs: deque[KnownJob] = deque(maxlen=FRESH)
        self.clients = [JobClient(self, f"c{number}") for number in range(CLIENTS)]
        #: submitted beside the history: jobs whose tasks may fail
        self.others = 0
        #: how often a client asked for the same thing again
        self.asked_again = 0
        self._names = 0

    @property
    def acknowledged(self) -> int:
        """How many commands of clients were answered."""
        return sum(one.known and one.kind != "read" for one in self.history.operations)

    @property
    def unknown(self) -> int:
        """How many were not."""
        return sum(not one.known and one.kind != "read" for one in self.history.operations)

    @property
    def reads(self) -> int:
        """How many reads were answered."""
        return sum(one.known and one.kind == "read" for one in self.history.operations)

    def begin(self) -> None:
        """Start."""
        self.hosts.begin()
        for client in self.clients:
            client.begin()

    def end(self) -> None:
        """Ask nothing more. What is under way goes on."""
        self.raging = False
        self.hosts.end()

    def finished(self) -> bool:
        """Whether everything has come to its end: no client waits, every job has ended that can (I9)."""
        leader = self.cluster.leader()
        machine = self.cluster.nodes[leader].machine if leader else None
        if machine is None or any(client.waits for client in self.clients) or not self.hosts.idle:
            return False
        return all(job.is_final or job.spec.hold for job in machine.state.jobs.values())

    def probe(self, leader: str) -> Answer:
        """One more command; it changes nothing."""
        return self.cluster.propose(leader, c.encode(c.ForgetJobs((), self.cluster.nodes[leader].clock.time())))

    def name_of_next_job(self) -> str:
        """A name that no job has."""
        self._names += 1
        return f"job-{self._names}"

    def judge(self) -> None:
        """Raise Violation for the first invariant that does not hold (faults.md, I1 to I10)."""
        digests = set()
        for node in self.cluster.nodes.values():
            assert node.machine is not None
            node.machine.state.check_invariants()
            digests.add(digest_of(node.machine.state))
        if len(digests) != 1:
            raise Violation(f"I8: equal hashes of commands, but different states: {sorted(digests)}")
        machine = self.cluster.nodes[self.cluster.names[0]].machine
        assert machine is not None
        operations = self.history.operations
        named = [job_view(machine.state, job) for job in machine.state.jobs.values() if job.spec.name]
        submitted = {one.key for one in operations if one.kind == "submit"}
        broken = [
            *checks.lost(operations, named),
            *checks.doubled(named),
            *checks.unfinished(operations, named),
            *checks.index_goes_back(operations),
            *checks.contradictions(operations),
            *(f"I10: job {job.id} has a name that nobody gave" for job in named if job.name not in submitted),
            *self._wrong_results(machine),
        ]
        if broken:
            raise Violation("\n".join(broken))

    def _wrong_results(self, machine: Machine) -> list[str]:
        """I2: every recorded result is that of an attempt that really ran to its end, and of the newest."""
        witness, found = self.hosts.witness, []
        for job in machine.state.jobs.values():
            for index in range(job.total):
                record = job.outcome(index)
                if record is None or record.state != "succeeded":
                    continue
                ref = (job.id, index, record.attempt)
                if ref not in witness.succeeded or record.result != result_of(ref):
                    found.append(f"I2: {ref} is recorded as succeeded with {record.result}, but did not")
                elif witness.newest[ref[:2]] != record.attempt:
                    found.append(f"I4: {ref} is recorded, but attempt {witness.newest[ref[:2]]} ran after it")
        return found


class JobClient:
    """Does one operation at a time."""

    def __init__(self, load: JobLoad, name: str) -> None:
        self.name = name
        self.waits = False
        self._load = load
        self._random = load.random
        self._cluster = load.cluster
        self._master = self._random.choice(self._cluster.names)
        self._operation: Operation | None = None
        self._job: KnownJob | None = None
        self._requests = 0
        self._deadline_s = 0.0
        self._asked = False
        self._make: Make = None
        self._request = ""

    def begin(self) -> None:
        """Start."""
        self._cluster.timeline.after(self._random.expovariate(1 / PAUSE_S), self._next)

    def _next(self) -> None:
        load = self._load
        self.waits = False
        self._operation = None
        if not load.raging:
            return
        self._requests += 1
        kind = self._random.choices(("submit", "other", "add", "read", "cancel", "close"), (14, 4, 28, 40, 5, 5))[0]
        self._job = self._random.choice(load.jobs) if load.jobs else None
        if kind == "other":
            self._submit_beside()
        elif kind == "submit" or self._job is None:
            self._submit()
        elif kind == "read" or (self._job.work and kind in ("add", "close")):
            self._begin("read", None, None)
        else:
            self._change(kind, self._job)

    def _submit(self) -> None:
        name = self._load.name_of_next_job()
        self._job = None
        work = self._random.random() < 0.3
        count = self._random.randint(1, 4) if work else 1
        if work:
            spec = JobSpec(kind="function", function=SURE, name=name, count=count)
        else:
            spec = JobSpec(kind="command", argv=("/bin/true",), name=name, hold=True, open=True)
        self._begin("submit", (count, work), lambda at: c.SubmitJob(name, spec, at), name)

    def _submit_beside(self) -> None:
        """A job whose tasks may fail, be lost, be asked again: only what holds for every job is judged of it."""
        random, load = self._random, self._load
        load.others += 1
        kind: Literal["function", "command"] = random.choice(["function", "command"])
        spec = JobSpec(
            kind=kind,
            function="pkg:f" if kind == "function" else "",
            argv=("/bin/true",) if kind == "command" else (),
            timeout_s=random.choice([0.0, 0.0, 0.3]),
            grace_s=0.1,
            count=random.randint(1, 6),
            retries=random.choice([0, 1, 5]),
            priority=random.randint(-1, 1),
            cpus=random.choice([1, 1, 2]),
            max_running=random.choice([0, 0, 2]),
            restartable=random.random() < 0.8,
        )
        if load.others % 3 == 0 and spec.count % 2 == 0:
            spec = msgspec.structs.replace(spec, gang=2)  # without chance: the rest goes as it went before
        if load.others % 4 < 3:
            spec = msgspec.structs.replace(spec, gpus=(0.5, 0.4, 1)[load.others % 4])
        if load.others % 4 == 1 and not spec.gang:
            spec = msgspec.structs.replace(spec, alternatives=(Alternative(gpus=0.3), Alternative(cpus=2)))
        self._cluster.propose(
            self._master,
            c.encode(c.SubmitJob(f"other-{load.others}", spec, self._cluster.nodes[self._master].clock.time())),
        )
        self._cluster.timeline.after(PAUSE_S, self._next)

    def _change(self, kind: str, job: KnownJob) -> None:
        request = f"{self.name}-{self._requests}"
        if kind == "add":
            self._begin(kind, ADDED, lambda at: c.AddTasks(request, job.id, _ARGUMENTS, ADDED, at))
        elif kind == "close":
            self._begin(kind, None, lambda at: c.CloseJob(request, job.id, at))
        else:
            self._begin(kind, None, lambda at: c.CancelJobs(request, (job.id,), at))

    def _begin(self, kind: str, given: object, make: Make, name: str = "") -> None:
        self.waits, self._asked = True, False
        self._deadline_s = self._random.choice(DEADLINES_S)
        key = self._job.key if self._job is not None else name
        operation = self._load.history.invoke(self.name, kind, key, given)
        self._operation = operation
        self._make = make
        self._request = f"{kind} {name or f'{self.name}-{self._requests}'}"
        self._ask(operation)

    # -- asking, until there is an answer ------------------------------------------------------------------------

    def _ask(self, operation: Operation) -> None:
        if operation is not self._operation:
            return
        if self._cluster.clock.monotonic() - operation.invoked_s > self._deadline_s:
            self._next()  # it stays open
            return
        self._load.asked_again += self._asked
        self._asked = True
        answer, request, job = self._send(), self._request, self._job
        answer.listen(lambda: self._on_answer(operation, request, job, answer))
        if not answer.done:
            self._cluster.timeline.after(IMPATIENT_S, lambda: self._ask_elsewhere(operation, answer))

    def _send(self) -> Answer:
        if self._make is not None:
            return self._cluster.propose(
                self._master, c.encode(self._make(self._cluster.nodes[self._master].clock.time()))
            )
        job = self._job
        assert job is not None

        def look(machine: Machine) -> object:
            return seen(job_view(machine.state, machine.state.jobs[job.id])), machine.state.version

        return self._cluster.read(self._master, look)

    def _ask_elsewhere(self, operation: Operation, answer: Answer) -> None:
        if not answer.done and operation is self._operation:
            self._master = self._random.choice(self._cluster.names)
            self._ask(operation)

    def _on_answer(self, operation: Operation, request: str, job: KnownJob | None, answer: Answer) -> None:
        if answer.error is None:
            output, index = _output(operation.kind, job, answer.value)
            if operation.kind != "read":
                self._compare(request, answer.value)
            if operation is self._operation:
                self._complete(operation, output, index, answer.value)
        elif operation is self._operation:
            leader = answer.error.leader_id if isinstance(answer.error, NotLeader) else None
            self._master = leader or self._random.choice(self._cluster.names)
            self._cluster.timeline.after(self._random.uniform(0.005, 0.1), lambda: self._ask(operation))

    def _compare(self, request: str, answer: object) -> None:
        value = answer.value if isinstance(answer, c.Applied) else answer
        first = self._load.first_answers.setdefault(request, value)
        if first != value:
            raise Violation(f"I10: {request} was answered with {first}, then with {value}")

    def _complete(self, operation: Operation, output: object, index: int, answer: object) -> None:
        self._load.history.complete(operation, output, master=self._master, index=index)
        if operation.kind == "submit":
            assert isinstance(answer, c.Applied)
            assert isinstance(answer.value, int)
            self._load.jobs.append(KnownJob(operation.key, answer.value, operation.input[1]))
        self._operation = None
        self._cluster.timeline.after(self._random.expovariate(1 / PAUSE_S), self._next)


def _output(kind: str, job: KnownJob | None, answer: object) -> tuple[object, int]:
    """What the history notes of an answer, and the index that came with it."""
    if isinstance(answer, c.Rejected):
        return (REFUSED, answer.code), -1
    if not isinstance(answer, c.Applied):
        assert isinstance(answer, tuple)
        return answer
    match kind:
        case "add":
            return answer.value, answer.version
        case "cancel":
            assert job is not None
            assert isinstance(answer.value, tuple)
            return job.id in answer.value, answer.version
    return True, answer.version
