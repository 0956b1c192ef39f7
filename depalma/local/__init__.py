"""A cluster of real processes on this machine, for trying things out, for tests, and for `depalmactl dev`."""

from depalma.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
