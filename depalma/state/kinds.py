"""The kinds of events, for those who choose among them. [pure]"""

from __future__ import annotations

from typing import Final

KINDS: Final = (
    "cluster.restored",
    "code.acknowledged", "code.added", "code.caught_up", "code.kicked", "code.lagging",
    "group.changed",
    "host.added", "host.changed", "host.drained", "host.draining", "host.invited", "host.joined", "host.lost",
    "host.making_way", "host.owner_left", "host.owner_returned", "host.recovered", "host.removed", "host.removing",
    "host.suspect", "host.undrained", "host.up",
    "job.cancelled", "job.finished", "job.held", "job.released", "job.resumed", "job.retried", "job.set",
    "job.submitted", "job.suspended",
    "limit.changed",
    "master.added", "master.moved", "master.removed",
    "order.changed",
    "quota.changed",
    "schedule.added", "schedule.removed", "schedule.skipped", "schedule.ticked", "share.changed",
    "task.assigned", "task.cancelled", "task.finished", "task.lost", "task.requeued", "task.started", "task.visited",
    "webhook.added", "webhook.changed", "webhook.failing", "webhook.recovered", "webhook.removed", "webhook.replayed",
    "webhook.tested",
)  # fmt: skip
