"""Machines (namespaces) that are reached by a real sshd, each with a home folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from depalma.local.processes import Identity, descendants, send, stat
from depalma.testing.chaos.network import Network
from depalma.testing.chaos.shell import run
from depalma.testing.chaos.waiting import wait_until

#: Where Debian's sshd puts itself before anybody has logged in.
_SEPARATION = Path("/run/sshd")
#: Environment that the sessions get too, so that what they leave behind is found (tests/conftest.py).
_PASSED_ON = "DEPALMA_TEST_RUN"


class SshMachines:
    """An sshd on each of the network's hosts; `config` is what `ssh -F` takes. Use it as a context.

    `folder(name)` is the machine's home folder. All may share one folder of installed releases, so that a test does
    not install the same thing several times.
    """

    def __init__(self, network: Network, directory: Path, *, environments: Path | None = None) -> None:
        self._network = network
        self._directory = directory
        self._environments = environments
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.config = directory / "ssh_config"

    def __enter__(self) -> SshMachines:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _SEPARATION.mkdir(mode=0o755, exist_ok=True)
        for name in ("host_key", "user_key", "wrong_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "depalma-test", "-f", str(self._directory / name))
        (self._directory / "authorized_keys").write_text((self._directory / "user_key.pub").read_text())
        self._write_client_config()
        try:
            for name in self._network.names:
                self.start(name)
            for name in self._network.names:
                self.wait(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for name in list(self._daemons):
            self.stop(name)

    def home(self, name: str) -> Path:
        """Returns the machine's home folder."""
        return self._directory / name

    def start(self, name: str, *, authorized_keys: str = "authorized_keys") -> None:
        """Starts the machine's sshd."""
        home = self.home(name)
        home.mkdir(mode=0o700, exist_ok=True)
        state = home / ".local/state/depalma"
        if self._environments is not None and not state.exists():
            state.mkdir(parents=True)
            (state / "env").symlink_to(self._environments)
        interpreter = Path(sys.executable).resolve().parent
        environment = {
            "HOME": str(home),
            "PATH": f"{interpreter}:/usr/local/bin:/usr/bin:/bin",
            _PASSED_ON: os.environ.get(_PASSED_ON, "-"),
        }
        lines = [
            f"ListenAddress {self._network.address(name)}:22",
            f"HostKey {self._directory / 'host_key'}",
            f"AuthorizedKeysFile {self._directory / authorized_keys}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PidFile none",
            "PrintMotd no",
            f"SetEnv {' '.join(f'{key}={value}' for key, value in environment.items())}",
        ]
        file = self._directory / f"sshd_config-{name}"
        file.write_text("\n".join(lines) + "\n")
        program = shutil.which("sshd")  # it insists on its whole path
        assert program is not None
        with (self._directory / f"sshd-{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                self._network.inside(name, program, "-D", "-e", "-f", str(file)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, name: str) -> None:
        """Returns when the machine can be reached."""
        wait_until(lambda: self._listens(name), within_s=60, what=f"sshd on {name}")

    def stop(self, name: str) -> None:
        """Ends the machine's sshd and its connections; whatever else runs there stays."""
        daemon = self._daemons.pop(name)
        whole = descendants([Identity(daemon.pid, found.started)] if (found := stat(daemon.pid)) else [])
        for process in whole:
            if _is_sshd(process.pid):
                send(process, signal.SIGKILL)
        daemon.wait()

    def _write_client_config(self) -> None:
        key = (self._directory / "host_key.pub").read_text().split()
        known = self._directory / "known_hosts"
        known.write_text("".join(f"{self._network.address(name)} {key[0]} {key[1]}\n" for name in self._network.names))
        lines = [
            "Host *",
            "User root",
            f"IdentityFile {self._directory / 'user_key'}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            "StrictHostKeyChecking yes",
            f"UserKnownHostsFile {known}",
            "GlobalKnownHostsFile /dev/null",
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def _listens(self, name: str) -> bool:
        try:
            with socket.create_connection((self._network.address(name), 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def _is_sshd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip().startswith("sshd")
    except OSError:
        return False
