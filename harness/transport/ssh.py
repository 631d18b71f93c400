# SPDX-License-Identifier: BSD-2-Clause
"""A transport over ssh (paramiko). It refuses a host whose key is unknown or has changed."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import select
import shlex
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import paramiko

from harness.deadline import Deadline
from harness.errors import AccessError, DeadlineExpired, InfrastructureError, TransportError
from harness.transport import DEFAULT_SECONDS, Completed, Stream
from harness.transport.files import FileCopies

log = logging.getLogger("fxh.transport")
# Otherwise paramiko's thread logs a traceback in addition to each of our errors.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

# Preferred key exchanges: they are fast on an emulated host.
_KEX = ("curve25519-sha256@libssh.org", "curve25519-sha256")


class SshTransport(FileCopies):
    """One connection to ``host``. Each command uses its own channel.

    The host must have the key ``known_host_key`` (a line ``ssh-ed25519 AAAA...``), or else one in the files ``known_hosts``
    (default ``~/.ssh/known_hosts``). The connection goes through the jump host ``over``, which is closed with it.
    Raises TransportError if the host is unreachable, AccessError if it has another key or refuses the login.
    """

    def __init__(
        self,
        host: str,
        port: int = 22,
        *,
        user: str = "root",
        private_key: str = "",
        key_path: Path | None = None,
        known_host_key: str = "",
        name: str = "",
        deadline: Deadline | None = None,
        key_paths: Sequence[Path] = (),
        known_hosts: Sequence[Path] = (),
        over: SshTransport | None = None,
    ) -> None:
        deadline = deadline or Deadline(20)
        self.name = name or f"{user}@{host}"
        self._where = f"{host} port {port}"
        self._over = over
        sock = self._socket(host, port, deadline)
        transport = paramiko.Transport(sock)
        try:
            options = transport.get_security_options()
            options.kex = sorted(options.kex, key=lambda name: name not in _KEX)
            transport.banner_timeout = transport.auth_timeout = max(1.0, deadline.remaining)
            known = None if known_host_key else self._known(host, port, known_hosts)
            if known:
                options.key_types = sorted(options.key_types, key=lambda kind: _bare(kind) not in known)
            transport.start_client(timeout=max(0.1, deadline.remaining))
            self._check_key(transport.get_remote_server_key(), host, port, known_host_key, known)
            self._authenticate(transport, user, private_key, (*([key_path] if key_path else []), *key_paths))
        except paramiko.AuthenticationException as exc:
            transport.close()
            # A host that hangs during the login looks like one that refuses it.
            kind = TransportError if deadline.expired else AccessError
            raise kind(f"ssh to {self._where}: {exc}") from exc
        except (paramiko.SSHException, OSError, EOFError) as exc:
            transport.close()
            raise TransportError(f"ssh to {self._where}: {exc or type(exc).__name__}") from exc
        except InfrastructureError:
            transport.close()
            raise
        # This keeps the connection in the tables of firewalls. It does not show whether the host is alive.
        transport.set_keepalive(30)
        self._transport = transport

    def _socket(self, host: str, port: int, deadline: Deadline) -> socket.socket | paramiko.Channel:
        try:
            if self._over is not None:
                return self._over._transport.open_channel(
                    "direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=max(0.1, deadline.remaining)
                )
            return socket.create_connection((host, port), timeout=max(0.1, deadline.remaining))
        except socket.gaierror as exc:
            hint = f"correct the name, or add [hosts.{host}] with its address to fxh.toml"
            raise AccessError(f"{host}: {exc.strerror}", hint=hint) from exc
        except (OSError, paramiko.SSHException, EOFError) as exc:
            way = f" over {self._over.name}" if self._over is not None else ""
            raise TransportError(f"{self._where}{way}: {exc}", hint="check that the host is up and its sshd is running") from exc

    @staticmethod
    def _known(host: str, port: int, paths: Sequence[Path]) -> Mapping[str, paramiko.PKey]:
        """The keys of the host in the known_hosts files, by type."""
        hosts = paramiko.HostKeys()
        for path in paths or (Path("~/.ssh/known_hosts").expanduser(),):
            if path.exists():
                hosts.load(str(path))
        return dict(hosts.lookup(host if port == 22 else f"[{host}]:{port}") or {})

    def _check_key(self, key: paramiko.PKey, host: str, port: int, pinned: str, known: Mapping[str, paramiko.PKey] | None) -> None:
        shown = f"{key.get_name()} {key.get_base64()}"
        if pinned:
            if shown != pinned:
                raise AccessError(
                    f"{self._where}: its host key {fingerprint(key)} differs from the configured one",
                    hint="if the host was reinstalled, replace the old key; otherwise the connection may be intercepted",
                )
            return
        if not known or key.get_name() not in known:
            raise AccessError(
                f"{self._where}: its host key is unknown: {key.get_name()} {fingerprint(key)}",
                hint=f"verify it on the host, then run: ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts",
            )
        if known[key.get_name()] != key:
            raise AccessError(
                f"{self._where}: its host key {fingerprint(key)} differs from that in known_hosts",
                hint="if the host was reinstalled, replace the old key; otherwise the connection may be intercepted",
            )

    @staticmethod
    def _authenticate(transport: paramiko.Transport, user: str, private_key: str, paths: Sequence[Path]) -> None:
        if private_key:
            transport.auth_publickey(user, paramiko.Ed25519Key.from_private_key(io.StringIO(private_key)))
            return
        keys: list[paramiko.PKey] = []
        locked = []
        for path in paths or [Path(f"~/.ssh/{name}").expanduser() for name in ("id_ed25519", "id_ecdsa", "id_rsa")]:
            try:
                if path.exists():
                    keys.append(paramiko.PKey.from_path(path))
            except paramiko.PasswordRequiredException:
                locked.append(str(path))
        for key in (*keys, *paramiko.Agent().get_keys()):
            try:
                transport.auth_publickey(user, key)
                return
            except paramiko.AuthenticationException:
                continue
        why = f" ({', '.join(locked)} has a passphrase: run ssh-add)" if locked else ""
        raise paramiko.AuthenticationException(f"the host accepts no key of the agent or of ~/.ssh for {user}{why}")

    def _run(self, argv: Sequence[str], deadline: Deadline, stdin: bytes) -> Completed:
        line = shlex.join(argv)
        channel = self._channel(line, deadline)
        out, err = bytearray(), bytearray()
        unsent = memoryview(stdin)
        try:
            if not stdin:
                channel.shutdown_write()
            channel.setblocking(False)
            while not (
                channel.exit_status_ready()
                and channel.eof_received
                and not channel.recv_ready()
                and not channel.recv_stderr_ready()
            ):
                if not self._transport.is_active():
                    raise TransportError(f"ssh to {self.name} dropped during: {line}")
                if deadline.expired:
                    raise DeadlineExpired(f"{self.name}: the command did not end within {deadline.seconds:.0f} s: {line}")
                moved = False
                if channel.recv_ready():
                    out += channel.recv(1 << 16)
                    moved = True
                if channel.recv_stderr_ready():
                    err += channel.recv_stderr(1 << 16)
                    moved = True
                if unsent and channel.send_ready():
                    sent = channel.send(bytes(unsent[: 1 << 15]))
                    unsent = unsent[sent:]
                    moved = True
                    if not unsent:
                        channel.shutdown_write()
                if channel.closed and not moved:
                    break
                if not moved:
                    select.select([channel], [], [], min(0.02 if unsent else 0.1, deadline.remaining))
            # A dying host closes the channel without a status.
            status = channel.exit_status if channel.exit_status_ready() else -1
        except (OSError, paramiko.SSHException, EOFError) as exc:
            raise TransportError(f"ssh to {self.name} dropped during: {line} ({exc})") from exc
        finally:
            channel.close()
        if status == -1 and not self._transport.is_active():
            raise TransportError(f"ssh to {self.name} dropped during: {line}")
        return Completed(tuple(argv), status, bytes(out), bytes(err))

    def open(self, argv: Sequence[str], *, pty: bool = False) -> Stream:
        channel = self._channel(shlex.join(argv), Deadline(DEFAULT_SECONDS), pty=pty)
        if not pty:
            channel.set_combine_stderr(True)
        return ChannelStream(channel)

    def forward(self, host: str, port: int) -> Stream:
        """A TCP connection from the remote host to ``host``. Raises TransportError."""
        try:
            return ChannelStream(self._transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=10))
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise TransportError(f"{self.name} cannot connect to {host} port {port}: {exc}") from exc

    def ping(self) -> None:
        try:
            self._transport.global_request("keepalive@openssh.com", wait=True)
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise TransportError(f"ssh to {self.name} dropped: {exc}") from exc
        if not self.alive:
            raise TransportError(f"ssh to {self.name} dropped")

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    def close(self) -> None:
        self._transport.close()
        if self._over is not None:
            self._over.close()

    def _channel(self, line: str, deadline: Deadline, pty: bool = False) -> paramiko.Channel:
        tries = 3
        while True:
            tries -= 1
            try:
                channel = self._transport.open_session(timeout=max(0.1, deadline.remaining))
                if pty:
                    channel.get_pty("vt100", 200, 50)
                # With exec, the login shell does not stay as another process.
                channel.exec_command(f"exec {line}")
                return channel
            except (paramiko.SSHException, OSError, EOFError) as exc:
                # If the server closes the channel before it accepts the command (RFC 4254, section 6.5), the command has not
                # started. dropbear 2022.83 does so shortly after another command has ended.
                if tries and self._transport.is_active() and not deadline.expired:
                    continue
                raise TransportError(f"ssh to {self.name} dropped before: {line} ({exc or type(exc).__name__})") from exc


class ChannelStream:
    """An ssh channel as a Stream."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def read(self, size: int, timeout: float | None = None) -> bytes:
        self._channel.settimeout(timeout)
        try:
            return self._channel.recv(size)
        except TimeoutError:
            raise
        except (OSError, EOFError):
            return b""

    def write(self, data: bytes) -> None:
        try:
            with self._lock:
                self._channel.settimeout(30)
                self._channel.sendall(data)
        except (OSError, EOFError) as exc:
            raise TransportError(f"cannot write to the stream: {exc or 'it is closed'}") from exc

    def close(self) -> None:
        self._channel.close()


def _bare(kind: str) -> str:
    """The type of key for a signature algorithm, as known_hosts names it."""
    return "ssh-rsa" if kind.startswith("rsa-sha2") else kind


def fingerprint(key: paramiko.PKey) -> str:
    """The fingerprint that ``ssh-keygen -l`` prints: ``SHA256:...``."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
