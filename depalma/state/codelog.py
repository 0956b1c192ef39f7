"""Commands about the code log: add an entry, acknowledge it, fall behind. [pure]

A host's code index rises with its acknowledgements, one an entry. A host that fails at an entry, or does not come on,
is marked as lagging (`Host.lag`); one that lags for too long is kicked out: it gets no work at all. Both end by
themselves once the host has what was newest when it was marked.
"""

from __future__ import annotations

from typing import Final

from depalma.codetree import ARCHIVE_KINDS, COMMAND, CodeEntry, command_digest
from depalma.state.checks import bad_code_name, bad_digest, bad_field, bad_range
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AckCode, AddCode, AppendCode, Applied, FailCode, LagCode, Rejected
from depalma.state.event_log import Detail
from depalma.state.hosts import KEEP_ACKNOWLEDGEMENTS, KEEP_RUNS, CodeLag, CodeRun, Host

_PLAIN_KINDS: Final = ("module", "folder")
_MAX_WORDS_BYTES = 65_536
_MAX_TIMEOUT_S = 7 * 86_400.0
#: What is kept of a message or of a command's output.
MAX_TEXT = 4096


def add_code(state: ClusterState, command: AddCode) -> Applied | Rejected:
    """Appends an entry; the same content again is no change and answers the entry that is in force."""
    known = state.answers.find("add_code", command.request)
    if known:
        return Applied(known.value, state.version)
    wrong = bad_code_name("name", command.name)
    if not wrong and command.kind not in _PLAIN_KINDS:
        wrong = bad_field("kind", command.kind, " or ".join(_PLAIN_KINDS))
    wrong = wrong or bad_digest("digest", command.digest) or bad_range("size_bytes", command.size_bytes, 0, 1 << 50)
    return wrong or _append(
        state,
        AppendCode(
            command.request, command.name, command.kind, command.digest, command.size_bytes, command.by, command.at
        ),
    )


def append_code(state: ClusterState, command: AppendCode) -> Applied | Rejected:
    """Appends an entry of any kind; a command and a rollback are always new ones."""
    known = state.answers.find("add_code", command.request)
    if known:
        return Applied(known.value, state.version)
    if command.rollback_of:
        return _roll_back(state, command)
    wrong = _bad_command(command) if command.kind == COMMAND else _bad_archive(command)
    return wrong or _append(state, command)


def _bad_archive(command: AppendCode) -> Rejected | None:
    wrong = bad_code_name("name", command.name)
    if not wrong and command.kind not in ARCHIVE_KINDS:
        wrong = bad_field("kind", command.kind, ", ".join((*ARCHIVE_KINDS, COMMAND)))
    if not wrong and (command.argv or command.timeout_s):
        wrong = bad_field("argv", list(command.argv), f"nothing, unless the kind is {COMMAND}")
    wrong = wrong or bad_digest("digest", command.digest) or bad_range("size_bytes", command.size_bytes, 0, 1 << 50)
    return wrong or (bad_digest("requirements", command.requirements) if command.requirements else None)


def _bad_command(command: AppendCode) -> Rejected | None:
    words = command.argv
    if not words or not words[0] or any("\0" in word for word in words):
        return bad_field("argv", list(words), "at least the program's name, no NUL")
    if sum(len(word.encode(errors="surrogateescape")) for word in words) > _MAX_WORDS_BYTES:
        return bad_field("argv", list(words), f"at most {_MAX_WORDS_BYTES} bytes together")
    if command.requirements:
        return bad_field("requirements", command.requirements, f"nothing when the kind is {COMMAND}")
    if command.digest != command_digest(words, command.timeout_s):
        return bad_field("digest", command.digest, "that of the command")
    return bad_code_name("name", command.name) or bad_range("timeout_s", command.timeout_s, 0, _MAX_TIMEOUT_S)


def _roll_back(state: ClusterState, command: AppendCode) -> Applied | Rejected:
    """Appends an entry with which the tree is that of an earlier index again."""
    target = command.rollback_of
    if not 1 <= target <= state.code_index:
        return Rejected("unknown_code", f"there is no code index {target}; the newest is {state.code_index}")
    # A command changes no tree: what is gone back to is what was in force beside it.
    while target and state.code[target - 1].kind == COMMAND:
        target -= 1
    if not target:
        return bad_field("rollback_of", command.rollback_of, "an index at which there was code")
    old = state.code[target - 1]
    return _append(
        state,
        AppendCode(
            command.request, old.name, old.kind, old.digest, old.size_bytes, command.by, command.at,
            old.requirements, rollback_of=command.rollback_of,
        ),
    )  # fmt: skip


def _append(state: ClusterState, command: AppendCode) -> Applied:
    entry = None
    if not command.rollback_of and command.kind != COMMAND:
        entry = state.code_in_force().get(command.name)
    content = (command.digest, command.kind, command.requirements)
    if entry is None or (entry.digest, entry.kind, entry.requirements) != content:
        entry = CodeEntry(
            index=state.code_index + 1,
            name=command.name,
            kind=command.kind,
            digest=command.digest,
            size_bytes=command.size_bytes,
            added_at=command.at,
            added_by=command.by,
            requirements=command.requirements,
            argv=command.argv,
            timeout_s=command.timeout_s,
            rollback_of=command.rollback_of,
        )
        state.code.append(entry)
        detail: Detail = {"code_index": entry.index, "name": entry.name, "digest": entry.digest, "by": entry.added_by}
        if entry.rollback_of:
            detail = {**detail, "rollback_of": entry.rollback_of}
        state.events.add("code.added", command.at, detail=detail)
        state.changes.code = True
    state.answers.keep("add_code", command.request, entry.index, command.at)
    return Applied(entry.index, state.version)


# ---------------------------------------------------------------- what hosts say


def ack_code(state: ClusterState, command: AckCode) -> Applied | Rejected:
    """Raises the host's code index if its tree is ours. Answers Applied(the host's code index)."""
    host = _host(state, command.host, command.incarnation)
    if isinstance(host, Rejected):
        return host
    if not 0 <= command.index <= state.code_index:
        return _unknown_index(state, command.index)
    ours = state.tree_digest(command.index)
    if command.tree_digest != ours:
        return Rejected(
            "wrong_tree",
            f"host {host.name} has another tree at code index {command.index}: "
            f"{command.tree_digest[:12] or 'none'}, not {ours[:12] or 'none'}",
        )
    if command.index > host.code_index or command.index not in host.acknowledgements:
        _keep(host.acknowledgements, command.index, command.signature, KEEP_ACKNOWLEDGEMENTS)
        if command.exit_code is not None:
            run = CodeRun(command.exit_code, command.output[-MAX_TEXT:], command.at)
            _keep(host.runs, command.index, run, KEEP_RUNS)
    if command.index > host.code_index:
        host.code_index = command.index
        detail: Detail = {"code_index": command.index, "tree_digest": ours}
        if command.exit_code is not None:
            detail = {**detail, "exit_code": command.exit_code}
        state.events.add("code.acknowledged", command.at, host=host.name, detail=detail)
        _note(state, host)
        if host.lag is not None and host.code_index >= host.lag.index:
            detail = {"code_index": host.code_index, "kicked": host.lag.kicked}
            host.lag = None
            state.events.add("code.caught_up", command.at, host=host.name, detail=detail)
    return Applied(host.code_index, state.version)


def fail_code(state: ClusterState, command: FailCode) -> Applied | Rejected:
    """Records why a host cannot apply an entry: it lags from now on."""
    host = _host(state, command.host, command.incarnation)
    if isinstance(host, Rejected):
        return host
    if not 1 <= command.index <= state.code_index:
        return _unknown_index(state, command.index)
    if command.index <= host.code_index:
        return Rejected("stale_report", f"host {host.name} has code index {host.code_index} already")
    if command.exit_code is not None:
        run = CodeRun(command.exit_code, command.output[-MAX_TEXT:], command.at)
        _keep(host.runs, command.index, run, KEEP_RUNS)
    _lag(state, host, command.reason[-MAX_TEXT:], command.at, kicked=False)
    return Applied(None, state.version)


def lag_code(state: ClusterState, command: LagCode) -> Applied | Rejected:
    """Marks a host that does not come on as lagging, or kicks it out."""
    host = _host(state, command.host, command.incarnation)
    if isinstance(host, Rejected):
        return host
    if host.code_index != command.index:
        return Rejected("stale_report", f"host {host.name} has code index {host.code_index}, not {command.index}")
    if host.code_index >= state.code_index:
        return Rejected("not_behind", f"host {host.name} has all of the code log")
    _lag(state, host, command.reason[-MAX_TEXT:], command.at, kicked=command.kicked)
    return Applied(None, state.version)


def _lag(state: ClusterState, host: Host, reason: str, at: float, *, kicked: bool) -> None:
    before = host.lag
    kicked = kicked or (before is not None and before.kicked)
    lag = CodeLag(before.since if before is not None else at, reason, state.code_index, kicked)
    if before is not None and (before.reason, before.kicked) == (lag.reason, lag.kicked):
        return
    host.lag = lag
    kind = "code.kicked" if kicked and (before is None or not before.kicked) else "code.lagging"
    detail: Detail = {"code_index": host.code_index, "newest": state.code_index, "reason": reason}
    state.events.add(kind, at, host=host.name, detail=detail)
    _note(state, host)


def _note(state: ClusterState, host: Host) -> None:
    state.changes.hosts.add(host.name)
    state.changes.code = True


def _keep(kept: dict[int, str] | dict[int, CodeRun], index: int, value: object, most: int) -> None:
    kept[index] = value  # type: ignore[assignment]
    while len(kept) > most:
        del kept[min(kept)]


def _host(state: ClusterState, name: str, incarnation: str) -> Host | Rejected:
    host = state.hosts.get(name)
    if host is None:
        return Rejected("unknown_host", f"there is no host {name}")
    if incarnation in host.over:
        return Rejected("incarnation_over", f"incarnation {incarnation} of host {host.name} is over")
    if incarnation != host.incarnation:
        return Rejected("stale_incarnation", f"host {host.name} has another incarnation now")
    return host


def _unknown_index(state: ClusterState, index: int) -> Rejected:
    return Rejected("unknown_index", f"there is no code index {index}; the newest is {state.code_index}")
