"""`cluster`: what a cluster file needs beside it (machines.py: and its machines)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl import machines
from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows
from depalma.ctl.session import Session
from depalma.ctl.wording import moment

if TYPE_CHECKING:
    from depalma.secretfiles import Step

_COLUMNS = (
    Column("FILE", lambda row: row["file"]),
    Column("ACTION", lambda row: row["action"]),
    Column("EXPIRES", lambda row: moment(row["expires_at"])),
)


@click.group(
    "cluster", cls=SubGroup, examples=("depalmactl cluster init -f lab.yaml", "depalmactl cluster up -f lab.yaml")
)
def cluster() -> None:
    """A cluster of several machines: its secrets, and starting and stopping it over ssh."""


for _command in (machines.up, machines.down, machines.status):
    cluster.add_command(_command)


@cluster.command(
    "init",
    examples=(
        "depalmactl cluster init -f lab.yaml                    # makes what is missing, keeps what is there",
        "depalmactl cluster init -f lab.yaml --renew            # new certificates for all masters",
        "depalmactl cluster init -f lab.yaml --new-ca           # replaces the authority, step 1 of 3; then --renew",
        "depalmactl cluster init -f lab.yaml --drop-old-ca      # step 3",
    ),
)
@click.option(
    "-f",
    "--file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The cluster file.",
)
@click.option("--renew", is_flag=True, help="Give every master a new certificate and key.")
@click.option("--new-ca", is_flag=True, help="Make a new authority; the old one stays good until --drop-old-ca.")
@click.option("--drop-old-ca", is_flag=True, help="Believe in the newest authority only.")
@click.pass_obj
def init(session: Session, file: Path, renew: bool, new_ca: bool, drop_old_ca: bool) -> None:
    """Make the folder of secrets that the cluster file names: tokens, authority, a certificate for each master.

    What exists is never overwritten without one of the flags. Running masters notice new certificates by themselves,
    within seconds, and use them for new connections.
    """
    if renew + new_ca + drop_old_ca > 1:
        raise click.UsageError("--renew, --new-ca and --drop-old-ca are steps of their own; give one of them")
    from depalma import config, secretfiles

    wanted = config.load(file)
    folder = config.secrets_folder(file, wanted)
    addresses = {master.id: master.host for master in wanted.masters}
    ids = list(addresses)
    if new_ca:
        steps = secretfiles.add_new_authority(folder, wanted.cluster)
    elif drop_old_ca:
        steps = secretfiles.drop_old_authorities(folder, wanted.cluster, ids)
    elif renew:
        steps = secretfiles.renew(folder, wanted.cluster, ids, addresses)
    else:
        # Between machines the API speaks TLS from the first day on, unless the file says otherwise.
        networked = not all(_is_loopback(address) for address in addresses.values())
        steps = secretfiles.prepare(folder, wanted.cluster, ids, addresses=addresses, api_tls=networked)
    secretfiles.sync(folder)
    _tell(session, folder, steps)
    speaks_tls = config.load(file).scheme == "https"
    _advise(session, file, made=any(step.action == "made" for step in steps), new_ca=new_ca, speaks_tls=speaks_tls)


def _is_loopback(address: str) -> bool:
    return address in ("localhost", "::1") or address.startswith("127.")


def _tell(session: Session, folder: Path, steps: list[Step]) -> None:
    session.narrate(f"{folder}:")
    rows: list[dict[str, Any]] = [
        {"file": step.file, "action": step.action, "expires_at": step.expires_at} for step in steps
    ]
    show_rows(session, rows, _COLUMNS, key="file")
    for step in steps:
        if step.problem:
            session.warn(f"{step.file} {step.problem}; give the masters new certificates with --renew")


def _advise(session: Session, file: Path, *, made: bool, new_ca: bool, speaks_tls: bool) -> None:
    if new_ca:
        session.narrate("Next, when every master has the new ca.crt:")
        session.narrate(f"  depalmactl cluster init -f {file} --renew")
        session.narrate(f"  depalmactl cluster init -f {file} --drop-old-ca      # when every master has its new file")
    elif made:
        session.narrate("A master needs token, agent.token, raft.secret, ca.crt, hosts.*, and its own master-ID.pem;")
        more = " and ca.crt, as does whoever uses the cluster" if speaks_tls else ""
        session.narrate(f"a host needs agent.token{more}. Keep ca.key where no master can read it.")
