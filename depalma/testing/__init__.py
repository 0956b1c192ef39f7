"""For tests of a cluster without a cluster: virtual time, a simulated network, simulated disks, a simulated cluster.

    from depalma.testing import Ledger, ManualClock, SimCluster, SimDisk, SimNetwork

Everything repeats exactly for the same seed (and PYTHONHASHSEED). `bin/simulate` runs many seeds against the real
replicas: `simulation.py` is one run, `storm.py` what goes wrong in it, `ledger_load.py` and `job_load.py` who uses the
cluster and judges what it said, `sim_hosts.py` the agents and what goes wrong with them, `bugs.py` and `agent_bugs.py`
what it must find.
"""

from depalma.testing.clock import ManualClock, SkewedClock, Timeline
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
    "SkewedClock",
    "Timeline",
    "Violation",
    "Weather",
]
