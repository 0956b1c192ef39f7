"""For tests of a cluster without a cluster: virtual time, a simulated network, simulated disks, a simulated cluster.

    from depalma.testing import Ledger, ManualClock, SimCluster, SimDisk, SimNetwork

Everything repeats exactly for the same seed. `bin/simulate` runs many seeds against the real replicas.
"""

from depalma.testing.clock import ManualClock, Timeline
from depalma.testing.cluster import Answer, SimCluster, Violation
from depalma.testing.disk import PowerCut, SimDisk
from depalma.testing.ledger import Ledger
from depalma.testing.network import SimNetwork, Weather

__all__ = [
    "Answer",
    "Ledger",
    "ManualClock",
    "PowerCut",
    "SimCluster",
    "SimDisk",
    "SimNetwork",
    "Timeline",
    "Violation",
    "Weather",
]
