"""`host invite`: the string by which a machine joins that has nothing yet."""

from __future__ import annotations

import click

from depalma.ctl.hosts import host
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.spec import login_name
from depalma.ctl.values import DURATION
from depalma.ctl.wording import clean, moment


@host.command(
    "invite",
    examples=(
        "depalmactl host invite h9 | ssh h9 depalma-agent --join -",
        "depalmactl host invite h9 --valid 10m",
    ),
)
@click.option(
    "--valid", "valid_s", type=DURATION, default=3600.0, metavar="T", help="How long the string is good (1h)."
)
@click.argument("name", metavar="HOST")
@click.pass_obj
def host_invite(session: Session, name: str, valid_s: float) -> None:
    """Print a string with which one machine can join as this host: once, and for a limited time.

    On that machine: depalma-agent --join STRING, or --join - and the string on its stdin, where no other user of the
    machine sees it. It needs no other file: it gets the cluster file and the agents' token, and starts its agent.
    Before it says anything it checks that it speaks with a master of this cluster. Whoever has the string can be that
    host: treat it like a password.
    """
    import secrets

    from depalma.joining import Invitation, hash_of

    secret = secrets.token_urlsafe(32)
    body = {"host": name, "secret_hash": hash_of(secret), "valid_s": valid_s, "by": login_name()}
    answer = session.post("/v1/invitations", body)
    invitation = Invitation(
        answer["cluster"], answer["host"], tuple(answer["masters"]), answer["authority_sha256"], secret
    )
    value = {"host": name, "join": invitation.text(), "expires_at": answer["expires_at"]}
    if session.structured:
        show_value(session, value, [], key="join")
    else:
        click.echo(value["join"])
    session.narrate(f"good once, until {moment(answer['expires_at'])}, for host {clean(name)}")
