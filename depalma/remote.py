"""The agent's entry: `depalma-agent --config FILE --name h1`; `depalma-agent install --user …` (agent/unit.py).

Exit codes: 0 told to stop · 2 usage or configuration · 3 the cluster refuses this agent, or its host was removed (do
not restart) · 4 cut off from all leaders for a whole lease, everything was killed · 5 another agent uses the folder ·
1 a fault of our own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from depalma import config as cluster_file
from depalma.agent import joining, unit
from depalma.agent.certificate import own_file
from depalma.agent.driver import EXIT_CUT_OFF, EXIT_REFUSED, Agent
from depalma.agent.store import FolderInUse
from depalma.certificates import AUTHORITY_FILE
from depalma.errors import ConfigError
from depalma.joining import Invitation
from depalma.trust import BadAuthority, Trust

EXIT_USAGE, EXIT_IN_USE = 2, 5

log = logging.getLogger(__name__)


async def _run(agent: Agent) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    return await agent.run()


def _trust(folder: Path, *, speaks_tls: bool) -> Trust | None:
    """Returns whom to believe. Errors: ConfigError, if masters speak TLS and nothing says whom."""
    file = folder / AUTHORITY_FILE
    if not (speaks_tls or file.exists()):
        return None
    try:
        return Trust(file, own_file(folder) or "")
    except BadAuthority as error:
        raise ConfigError(f"{error}; the masters' API speaks TLS, and a host needs {AUTHORITY_FILE} for it") from error


def _join(args: argparse.Namespace) -> tuple[Path, str]:
    """Returns cluster file and name of a machine that has joined. Errors: ConfigError, CannotJoin."""
    invitation = Invitation.read(sys.stdin.readline() if args.join == "-" else args.join)
    folder = args.config or joining.folder_of(invitation)
    return asyncio.run(joining.join(invitation, folder, patience_s=args.join_wait)), invitation.host


def main(argv: list[str] | None = None) -> None:
    """Runs the agent in the foreground."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["install"]:
        sys.exit(unit.main(words[1:]))
    parser = argparse.ArgumentParser(prog="depalma-agent", description="Runs the tasks of a Depalma cluster here.")
    parser.add_argument("--config", type=Path, help="the cluster file; with --join, the folder for it")
    parser.add_argument("--name", help="this host's name: of the cluster file, or by `host add`")
    parser.add_argument("--join", metavar="STRING", help="join with what `host invite` printed; -: read it from stdin")
    parser.add_argument("--join-wait", type=float, default=60.0, metavar="S", help="how long to look for a leader (60)")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    args = parser.parse_args(words)
    if args.join is None and (args.config is None or args.name is None):
        parser.error("--config and --name are needed, or --join")
    logging.basicConfig(
        level=args.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        file, name = (args.config, args.name) if args.join is None else _join(args)
        config = cluster_file.load(file)
        host = config.host(name)
        folder = Path(config.secrets).expanduser()
        token = cluster_file.read_agent_token(file.parent / folder)
        trust = _trust(file.parent / folder, speaks_tls=config.scheme == "https")
        code = asyncio.run(_run(Agent(config, host, token, trust)))
    except joining.CannotJoin as error:
        log.error("%s", error)
        code = EXIT_REFUSED if error.refused else EXIT_CUT_OFF
    except ConfigError as error:
        log.error("%s", error)
        code = EXIT_USAGE
    except FolderInUse as error:
        log.error("%s", error)
        code = EXIT_IN_USE
    sys.exit(code)


if __name__ == "__main__":
    main()
