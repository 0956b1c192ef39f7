"""Real faults on real processes: masters and agents in network namespaces of their own, on disks that can be broken.

Needs root on Linux; `requirements.missing` says what else. `bin/chaos` runs it, docs/chaos.md explains it.
"""
