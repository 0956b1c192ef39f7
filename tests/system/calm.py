"""Settings of clusters on a busy machine, where any process may stand still for a second or two at any moment.

A local cluster's own are for watching: there a host that says nothing for 1.5 s is suspect, and its tasks are soon run
elsewhere; a leader that says nothing for 0.6 s is replaced. Processes that die are noticed at once in either case.
"""

from __future__ import annotations

from typing import Any

#: No host is suspect, let alone lost, only because it got no processor.
CALM: dict[str, Any] = {"lease_s": 10.0, "heartbeat_s": 0.5}
#: Nor is a leader replaced: for tests that assume that one leads on. The first election takes this long, too.
STEADY: dict[str, Any] = {**CALM, "election_s": [2.0, 3.0]}
#: Only keeps what hangs from hanging for ever.
START_S = 60.0
