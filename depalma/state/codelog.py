"""Commands about the code log: add an entry, acknowledge it. [pure]"""

from __future__ import annotations

from depalma.codetree import CodeEntry
from depalma.state.checks import bad_code_name, bad_digest, bad_field, bad_range
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AckCode, AddCode, Applied, Rejected
from depalma.state.event_log import Detail
from depalma.state.hosts import KEEP_ACKNOWLEDGEMENTS

_KINDS = ("module", "folder")


def add_code(state: ClusterState, command: AddCode) -> Applied | Rejected:
    """Appends an entry; the same content again is no change and answers the entry that is in force."""
    if known := state.answers.find("add_code", command.request):
        return Applied(known.value, state.version)
    wrong = bad_code_name("name", command.name)
    if not wrong and command.kind not in _KINDS:
        wrong = bad_field("kind", command.kind, " or ".join(_KINDS))
    wrong = wrong or bad_digest("digest", command.digest) or bad_range("size_bytes", command.size_bytes, 0, 1 << 50)
    if wrong:
        return wrong
    newest = next((entry for entry in reversed(state.code) if entry.name == command.name), None)
    if newest is None or (newest.digest, newest.kind) != (command.digest, command.kind):
        newest = CodeEntry(
            index=state.code_index + 1,
            name=command.name,
            kind=command.kind,
            digest=command.digest,
            size_bytes=command.size_bytes,
            added_at=command.at,
            added_by=command.by,
        )
        state.code.append(newest)
        detail: Detail = {
            "code_index": newest.index,
            "name": newest.name,
            "digest": newest.digest,
            "by": newest.added_by,
        }
        state.events.add("code.added", command.at, detail=detail)
        state.changes.code = True
    state.answers.keep("add_code", command.request, newest.index, command.at)
    return Applied(newest.index, state.version)


def ack_code(state: ClusterState, command: AckCode) -> Applied | Rejected:
    """Raises the host's code index if its tree is ours. Answers Applied(the host's code index)."""
    host = state.hosts.get(command.host)
    if host is None:
        return Rejected("unknown_host", f"there is no host {command.host}")
    if command.incarnation in host.over:
        return Rejected("incarnation_over", f"incarnation {command.incarnation} of host {host.name} is over")
    if command.incarnation != host.incarnation:
        return Rejected("stale_incarnation", f"host {host.name} has another incarnation now")
    if not 0 <= command.index <= state.code_index:
        return Rejected("unknown_index", f"there is no code index {command.index}; the newest is {state.code_index}")
    ours = state.tree_digest(command.index)
    if command.tree_digest != ours:
        return Rejected(
            "wrong_tree",
            f"host {host.name} has another tree at code index {command.index}: "
            f"{command.tree_digest[:12] or 'none'}, not {ours[:12] or 'none'}",
        )
    if command.index > host.code_index:
        host.code_index = command.index
        host.acknowledgements[command.index] = command.signature
        while len(host.acknowledgements) > KEEP_ACKNOWLEDGEMENTS:
            del host.acknowledgements[min(host.acknowledgements)]
        detail: Detail = {"code_index": command.index, "tree_digest": ours}
        state.events.add("code.acknowledged", command.at, host=host.name, detail=detail)
        state.changes.hosts.add(host.name)
        state.changes.code = True
    return Applied(host.code_index, state.version)
