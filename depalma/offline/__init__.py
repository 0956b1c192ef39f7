"""What can be done with a cluster's files while its masters do not run: look at a snapshot, restore it, recover.

Everything here works on this machine's disks only, holds the lock that a running master would hold, and puts a
directory in place as a whole or not at all. `depalmactl` is the way to it.
"""
