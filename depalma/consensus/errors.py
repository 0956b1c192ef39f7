"""What consensus can refuse or die of. Each message says what happened and what to do next."""

from __future__ import annotations


class ConsensusError(Exception):
    """Any error of this package."""


class NotLeader(ConsensusError):
    """This replica does not lead, and the command was certainly not appended: send it to `leader_id`."""

    def __init__(self, leader_id: str | None) -> None:
        hint = f"the leader is {leader_id}" if leader_id else "no leader is known"
        super().__init__(f"this replica is not the leader; {hint}")
        self.leader_id = leader_id


class OutcomeUnknown(ConsensusError):
    """The command may or may not become part of the log: ask again with the same request id."""


class CommandTooLarge(ConsensusError):
    """One command exceeds the size limit of a log entry; nothing was appended."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"command of {size_bytes} bytes exceeds the limit of {limit_bytes}; put the payload into a blob"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class Explained(ConsensusError):
    """An error of the world, not of ours: the message says what an operator needs; a traceback would only hide it."""


class DiskFailed(Explained):
    """A write or a sync failed. The replica stops: it must not acknowledge what it could not store."""

    def __init__(self, action: str, path: str, cause: OSError) -> None:
        super().__init__(
            f"{action} {path} failed: {cause.strerror or cause}; nothing more was acknowledged. "
            "Free or repair the disk, then start this replica again"
        )
        self.path = path
        self.errno = cause.errno


_REBUILD = (
    "If the other masters are healthy, move this replica's directory away and start it again: "
    "it fetches everything from them. Do that on one replica at a time, never on a majority"
)


class JournalDamaged(Explained):
    """The journal is damaged before its end, so acknowledged entries may be missing."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"journal {path} is damaged: {what}. {_REBUILD}")
        self.path = path


class SnapshotDamaged(Explained):
    """A snapshot fails its checksum or cannot be restored."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"snapshot {path} is damaged: {what}. {_REBUILD}")
        self.path = path
        self.what = what


class SnapshotTooNew(SnapshotDamaged):
    """A newer release wrote the snapshot; it is whole, but not for this release to read."""

    def __init__(self, path: str, found: int, known: int) -> None:
        ConsensusError.__init__(
            self,
            f"snapshot {path} has format {found}, which a newer release wrote; this release reads formats up to "
            f"{known}. Start this replica with that release again; nothing was changed",
        )
        self.path = path
        self.what = f"format {found}"
        self.found = found
        self.known = known


class SnapshotFailed(ConsensusError):
    """A snapshot that was asked for could not be written; the replica goes on without it."""

    def __init__(self, directory: str) -> None:
        super().__init__(f"the snapshot could not be written to {directory}; the log of this master says why")


class WrongDirectory(Explained):
    """The directory is another replica's, or another cluster's."""

    def __init__(self, path: str, found: str, wanted: str) -> None:
        super().__init__(
            f"{path} says that this directory is that of {found}, not of {wanted}. "
            "Check --id, and `cluster` and `dir` in the cluster file; nothing was changed"
        )
        self.path = path


class DirectoryInUse(Explained):
    """Another process has the replica's directory open."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is in use by another process; stop that one first")
        self.path = path


class InvariantBroken(ConsensusError):
    """Something that Raft rules out has happened: the replica stops rather than guess."""


class ApplyFailed(ConsensusError):
    """The state machine raised while applying a committed command: the replica stops, it never skips."""

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(f"applying command {index} raised {type(cause).__name__}: {cause}")
        self.index = index


class MembershipRefused(ConsensusError):
    """The members cannot be changed like this, or not now; nothing was changed. `code` says why in one word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TransferFailed(ConsensusError):
    """Leadership was not handed over; this replica goes on leading."""


class Removed(Explained):
    """The cluster has removed this member: it must not go on, and not be started again as it was."""

    def __init__(self, member: str) -> None:
        super().__init__(
            f"{member} was removed from the cluster. Its directory is no longer needed; to bring it back, "
            "add it again and start it with --join"
        )


class ReplicaStopped(ConsensusError):
    """The replica is not running."""
