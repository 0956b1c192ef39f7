"""Replicates opaque commands over 1, 3 or 5 replicas and keeps them on disk. Knows no job. See DESIGN.md."""

from depalma.consensus.errors import (
    ApplyFailed,
    CommandTooLarge,
    ConsensusError,
    DirectoryInUse,
    DiskFailed,
    InvariantBroken,
    JournalDamaged,
    NotLeader,
    OutcomeUnknown,
    ReplicaStopped,
    SnapshotDamaged,
    SnapshotFailed,
    SnapshotTooNew,
    WrongDirectory,
)
from depalma.consensus.replica import Replica
from depalma.consensus.settings import Member, ReplicaSettings, StateMachine

__all__ = [
    "ApplyFailed",
    "CommandTooLarge",
    "ConsensusError",
    "DirectoryInUse",
    "DiskFailed",
    "InvariantBroken",
    "JournalDamaged",
    "Member",
    "NotLeader",
    "OutcomeUnknown",
    "Replica",
    "ReplicaSettings",
    "ReplicaStopped",
    "SnapshotDamaged",
    "SnapshotFailed",
    "SnapshotTooNew",
    "StateMachine",
    "WrongDirectory",
]
