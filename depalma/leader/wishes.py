"""Makes agents follow what was asked for of their hosts: removed, drained, other slots. Says in the log what changed.

Everything here is idempotent and looks at the state as it is: it runs at each change of a host and every moment, so
that it does not matter whether the agent was connected, or this master led, when it was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from depalma.leader.context import Context
from depalma.leader.session import AgentSession
from depalma.leader.sessions import Sessions
from depalma.protocol import Refused
from depalma.state.hosts import Drain, Host

log = logging.getLogger(__name__)

_TROUBLE = ("suspect", "lost")


class Wishes:
    """Of one reign."""

    def __init__(self, context: Context, sessions: Sessions) -> None:
        self._context = context
        self._sessions = sessions
        self._told: dict[str, tuple[str, str]] = {}

    def begin(self) -> None:
        """Takes the states of now as known: the reigns before have told them."""
        self._told = {name: _words(host) for name, host in self._context.state.hosts.items()}

    def changed(self, names: Iterable[str]) -> None:
        """Follows up a change of hosts."""
        for name in names:
            self._tell(name)
            self.look_at(name)

    def look(self) -> None:
        """Looks at every host of which something is asked: deadlines pass, agents come."""
        for name, host in list(self._context.state.hosts.items()):
            if host.drain is not None or host.removing:
                self.look_at(name)

    def look_at(self, name: str) -> None:
        """Tells the host's agent what it does not know yet."""
        host = self._context.state.hosts.get(name)
        session = self._sessions.by_host.get(name)
        if session is None:
            return
        if host is None or host.removing:
            self._sessions.dismiss(session, Refused(f"host {name} was removed from the cluster", stop=True))
            return
        if (session.slots_told, session.policy_told) != (host.configured_slots, host.owner_policy):
            self._sessions.welcome(session)
        if host.drain is not None and host.attempts:
            self._empty(session, host, host.drain)

    def _empty(self, session: AgentSession, host: Host, drain: Drain) -> None:
        """What has not started goes elsewhere at once; what runs, when the deadline is over."""
        orders, reason = self._sessions.orders, f"host {host.name} is being drained: {host.shown_reason}"
        waiting = [ref for ref, attempt in host.attempts.items() if attempt.started_at is None]
        orders.kill(session, waiting, outcome="returned", reason=reason)
        if drain.deadline_at is not None and self._context.wall() >= drain.deadline_at:
            orders.kill(session, list(host.attempts), outcome="moved", reason=reason)

    def _tell(self, name: str) -> None:
        host = self._context.state.hosts.get(name)
        if host is None:
            if self._told.pop(name, None):
                log.info("host %s is removed", name)
            return
        words = _words(host)
        if self._told.get(name) != words:
            self._told[name] = words
            level = logging.WARNING if words[0] in _TROUBLE else logging.INFO
            log.log(level, "host %s is %s%s", name, words[0], f": {words[1]}" if words[1] else "")


def _words(host: Host) -> tuple[str, str]:
    return host.shown_state, host.shown_reason
