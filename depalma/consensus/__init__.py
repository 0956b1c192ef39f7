"""Replicates opaque commands over a few replicas and keeps them on disk. Knows no job. See DESIGN.md."""

from depalma.consensus.errors import (
    ApplyFailed,
    CommandTooLarge,
    ConsensusError,
    DirectoryInUse,
    DiskFailed,
    Explained,
    InvariantBroken,
    JournalDamaged,
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    Removed,
    ReplicaStopped,
    SnapshotDamaged,
    SnapshotFailed,
    SnapshotTooNew,
    TransferFailed,
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
    "Explained",
    "InvariantBroken",
    "JournalDamaged",
    "Member",
    "MembershipRefused",
    "NotLeader",
    "OutcomeUnknown",
    "Removed",
    "Replica",
    "ReplicaSettings",
    "ReplicaStopped",
    "SnapshotDamaged",
    "SnapshotFailed",
    "SnapshotTooNew",
    "StateMachine",
    "TransferFailed",
    "WrongDirectory",
]
