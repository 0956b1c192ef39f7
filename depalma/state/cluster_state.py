"""Everything that the masters replicate. [pure]"""

from __future__ import annotations

from msgspec import Struct, field

from depalma.codetree import CodeEntry, tree_at, tree_digest
from depalma.model import MasterAddress
from depalma.state.dependencies import Waiting, follow
from depalma.state.event_log import EventLog
from depalma.state.fits import Fits
from depalma.state.hosts import Host
from depalma.state.invariants import check
from depalma.state.invitations import Invitation
from depalma.state.jobs import Job
from depalma.state.limits import Limits
from depalma.state.outbox import Webhooks
from depalma.state.quotas import Quotas
from depalma.state.ready import ReadyJobs
from depalma.state.requests import Answers
from depalma.state.schedule import Schedule
from depalma.state.shapes import Shape
from depalma.state.shares import Account, Shares
from depalma.state.timing import Due
from depalma.state.ways import difference, on_hosts

#: A priority that has got nothing for so long gets a task.
AGE_S = 3600.0


class Changes(Struct, gc=False):
    """What changed since it was last drained. Soft: not replicated, not in snapshots; for waking up who waits."""

    jobs: set[int]
    hosts: set[str]
    code: bool = False
    masters: bool = False
    webhooks: set[str] = field(default_factory=set)
    forgotten: list[Job] = field(default_factory=list)  #: to be freed by whoever drains, at the pace that suits it


class ClusterState:
    """The jobs, the hosts and the code log. Only `machine.apply` changes it; read it on the same thread."""

    __slots__ = (
        "_trees",
        "age_s",
        "answers",
        "changes",
        "code",
        "due",
        "events",
        "fits",
        "hosts",
        "invitations",
        "jobs",
        "limits",
        "masters",
        "next_job",
        "quotas",
        "ready",
        "removed",
        "schedules",
        "shares",
        "term",
        "version",
        "waiting",
        "ways",
        "webhooks",
    )

    def __init__(self) -> None:
        self.version = 0  #: commands applied, refused ones included
        self.term = 0  #: highest term of a leader that assigned tasks
        self.next_job = 1  #: id of the next job
        self.jobs: dict[int, Job] = {}  #: in order of id
        self.hosts: dict[str, Host] = {}
        self.masters: dict[str, MasterAddress] = {}  #: empty until the first leader has recorded them
        self.invitations: dict[str, Invitation] = {}  #: by the hash of the secret
        self.removed: set[str] = set()  #: hosts of the cluster file that were removed, and stay so
        self.schedules: dict[str, Schedule] = {}
        self.code: list[CodeEntry] = []  #: entry n stands at n - 1
        self.answers = Answers()
        self.events = EventLog()
        self.webhooks = Webhooks()
        self.limits = Limits()
        self.quotas = Quotas()
        self.shares = Shares()
        self.age_s = AGE_S  #: 0 = a priority that gets nothing waits for ever
        self.ready = ReadyJobs(self.limits, self.shares, self.quotas)  #: derived
        self.fits = Fits()  #: derived
        self.waiting = Waiting()  #: derived
        self.due = Due()  #: derived
        #: what was counted of jobs with alternatives, by what their tasks take; derived
        self.ways: dict[int, list[tuple[Shape, int]]] = {}
        self.changes = Changes(set(), set())
        self._trees: dict[int, str] = {0: ""}

    @classmethod
    def empty(cls) -> ClusterState:
        """Returns the state before the first command."""
        return cls()

    @property
    def code_index(self) -> int:
        """Returns the number of the newest entry of the code log, 0 when it is empty."""
        return len(self.code)

    def code_in_force(self) -> dict[str, CodeEntry]:
        """Returns the newest tree: the entry of each name."""
        return tree_at(self.code, self.code_index)

    def tree_digest(self, index: int) -> str:
        """Returns the digest of the code at `index`. Errors: KeyError beyond the log."""
        digest = self._trees.get(index)
        if digest is None:
            if not 0 <= index <= len(self.code):
                raise KeyError(index)
            digest = self._trees[index] = tree_digest(tree_at(self.code, index))
        return digest

    def settle(self, job: Job, at: float) -> None:
        """Follows up a change of a job: ends it when nothing is left, keeps the ready index, notes the change; and
        what that means for those that wait for it."""
        self.settle_alone(job, at)
        if job.id in self.waiting:
            follow(self, job, at)

    def settle_alone(self, job: Job, at: float) -> None:
        """Follows up a change of a job, as far as it concerns itself."""
        if job.cancelled:
            job.asleep, job.suspension = False, None
            if job.unmet:
                self.waiting.drop(job)
        if not job.open and job.finished_at is None and job.done.ended == len(job.states) and not job.waits:
            job.end(at)
            if job.unmet:
                self.waiting.drop(job)
            self.events.add("job.finished", at, job=job.id, detail={"state": job.state(), "exit_code": job.exit_code})
        self.count(job, at)
        self.ready.refresh(job, at)
        self.changes.jobs.add(job.id)

    def count(self, job: Job, at: float) -> None:
        """Tells limits and shares what of the job is on hosts now."""
        tasks = len(job.running) - job.counted
        if not tasks:
            return
        job.counted += tasks
        account = self.shares.account(job.spec.user)
        self.shares.accrue(account, at)
        account.tasks += tasks
        if job.shape.others:
            self._count_ways(job, account)
        else:
            account.slots += tasks * job.shape.weight
            self.quotas.count(job, job.shape, tasks)
        self.limits.count(job, tasks)
        self.ready.used(account)
        if tasks > 0:
            self.ready.fed(job.spec.priority, at)

    def _count_ways(self, job: Job, account: Account) -> None:
        """Does it for what tasks with alternatives take."""
        now, before = on_hosts(job), self.ways.pop(job.id, [])
        if now:
            self.ways[job.id] = now
        for shape, more in difference(before, now):
            account.slots += more * shape.weight
            self.quotas.count(job, shape, more)

    def settle_host(self, host: Host, at: float) -> None:
        """Follows up that attempts may have left a host: it is drained, or gone, when none is left."""
        self.changes.hosts.add(host.name)
        if host.attempts:
            return
        if host.removing:
            self.remove_host(host, at)
        elif host.drain is not None and host.drain.done_at is None:
            host.drain.done_at = at
            self.events.add("host.drained", at, host=host.name, detail={"reason": host.drain.reason})

    def remove_host(self, host: Host, at: float) -> None:
        """Takes a host without attempts off the list. One of the cluster file is remembered, or it would come back."""
        del self.hosts[host.name]
        if host.from_file:
            self.removed.add(host.name)
        self.events.add("host.removed", at, host=host.name, detail={"reason": host.removing})
        self.changes.hosts.add(host.name)
        self.fits.note((host.name,), self.hosts)

    def check_invariants(self) -> None:
        """Checks every rule that ties the parts together. Errors: BrokenInvariant that names what does not fit."""
        check(self)
