"""Tells agents which of their jobs are suspended.

An agent is told all of them, each time that they change and first on every connection, so whatever it missed, or was
told by another leader, is put right.
"""

from __future__ import annotations

from collections.abc import Mapping

from depalma.leader.context import Context
from depalma.leader.orders import Orders
from depalma.leader.session import AgentSession
from depalma.protocol import Suspended


class Suspensions:
    """Of one reign."""

    def __init__(self, context: Context, orders: Orders, by_host: Mapping[str, AgentSession]) -> None:
        self._context = context
        self._orders = orders
        self._by_host = by_host
        self._told: set[int] = set()  #: every job that some agent was told of

    def begin(self, session: AgentSession) -> None:
        """Tells an agent that has just connected; also if there is nothing: it may believe otherwise."""
        jobs = self._context.state.jobs
        here = self._context.state.hosts[session.host].by_job
        session.suspended = {job for job in here if jobs[job].suspension is not None}
        self._tell(session)

    def changed(self, job_id: int) -> None:
        """Follows up a change of a job. Cheap for those that are not suspended, which is nearly all of them."""
        job = self._context.state.jobs.get(job_id)
        if job is not None and job.suspension is not None:
            for host in {attempt.host for attempt in job.running.values()}:
                session = self._by_host.get(host)
                if session is not None and job_id not in session.suspended:
                    session.suspended.add(job_id)
                    self._tell(session)
        elif job_id in self._told:
            self._told.discard(job_id)
            for session in self._by_host.values():
                if job_id in session.suspended:
                    session.suspended.discard(job_id)
                    self._tell(session)

    def _tell(self, session: AgentSession) -> None:
        self._told |= session.suspended
        if session.suspends_jobs:
            jobs = tuple(sorted(session.suspended))
            session.send(Suspended(self._orders.next_order(), self._context.term, jobs))
