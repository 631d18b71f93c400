# SPDX-License-Identifier: BSD-2-Clause
"""A jump host: an OpenSSH server on a loopback port, with its own keys and configuration."""

from __future__ import annotations

import getpass
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from remote_host import Remote

from harness.deadline import ConditionNotMet, Deadline


class Gate:
    """An sshd that runs until :meth:`close`. It adds the host ``far`` to the ssh configuration of ``remote``: dom0 by ProxyJump.

    Skips the test if there is no sshd.
    """

    def __init__(self, remote: Remote, directory: Path) -> None:
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if sshd is None:
            pytest.skip("needs an OpenSSH server: apt-get install openssh-server")
        # As root, sshd needs this directory for privilege separation.
        if getpass.getuser() == "root":
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._sshd, self._remote, self._directory = sshd, remote, directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        for name in ("host", "user"):
            self._keygen(name)
        # Keywords of sshd_config(5). StrictModes would also check the parent directories.
        (directory / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            f"PidFile none\nLogLevel DEBUG1\nPermitOpen 127.0.0.1:{remote.one.port}\n"
        )
        self._trust()
        ssh = remote.directory / ".ssh"
        (ssh / "config").write_text(
            (ssh / "config").read_text()
            + f"Host gate\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n  IdentityFile {directory}/user\n"
            + f"Host far\n  HostName 127.0.0.1\n  Port {remote.one.port}\n  IdentityFile {ssh}/id_lab\n  ProxyJump gate\n"
        )
        self._start()

    def _keygen(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._directory / name)], check=True)

    def _trust(self) -> None:
        known = self._remote.directory / ".ssh" / "known_hosts"
        key = " ".join((self._directory / "host.pub").read_text().split()[:2])
        known.write_text(known.read_text() + f"[127.0.0.1]:{self.port} {key}\n")

    def _start(self) -> None:
        argv = [self._sshd, "-D", "-f", str(self._directory / "sshd_config"), "-E", str(self._directory / "log")]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

        def reachable() -> None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError as exc:
                raise ConditionNotMet(f"{exc}; {self.log()[-300:]}") from exc

        Deadline(20).wait("the sshd of the jump host", reachable, 0.1)

    def _sessions(self) -> list[int]:
        """The processes of logged-in users: the children of the listening process."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children]

    def connections(self) -> int:
        """The current number of logged-in users."""
        return len(self._sessions())

    def drop(self) -> None:
        """End all connections. New ones are accepted."""
        for child in self._sessions():
            subprocess.run(["kill", "-9", str(child)], check=False)

    def new_key(self) -> None:
        """Restart the server with a host key that differs from the known one."""
        self.close()
        self._keygen("host")
        self._start()

    def log(self) -> str:
        path = self._directory / "log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        self.drop()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)
