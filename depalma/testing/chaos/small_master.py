"""The real master with small files, so that segments roll over and snapshots are taken within seconds, and with a disk
that can be told to kill it (failpoints.py).

`python -m depalma.testing.chaos.small_master --config FILE --id m1`; the sizes are in the environment.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

from depalma import master
from depalma.consensus import ReplicaSettings, replica
from depalma.testing.chaos import variants
from depalma.testing.chaos.failpoints import DyingDisk

#: name of ReplicaSettings' field → the variable that holds it
FIELDS = {"segment_bytes": "DEPALMA_CHAOS_SEGMENT_BYTES", "keep_entries": "DEPALMA_CHAOS_KEEP_ENTRIES"}


def main() -> int:
    """Entry of depalma-master, with the sizes of the environment."""
    sizes: dict[str, Any] = {field: int(os.environ[name]) for field, name in FIELDS.items() if name in os.environ}
    vars(master)["ReplicaSettings"] = partial(ReplicaSettings, **sizes)  # the one place where a master makes them
    vars(replica)["FileDisk"] = DyingDisk
    variants.install()
    return master.main()


if __name__ == "__main__":
    sys.exit(main())
