# SPDX-License-Identifier: BSD-2-Clause
"""A transport over ssh (paramiko). It refuses a host whose key is unknown or has changed."""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import select
import shlex
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import paramiko
from paramiko.hostkeys import InvalidHostKey

from harness.deadline import Deadline
from harness.errors import AccessError, DeadlineExpired, Refused, TransportError
from harness.safetext import plain
from harness.transport import DEFAULT_SECONDS, LOOPBACK, Completed, Stream, sshkeys
from harness.transport.files import FileCopies

log = logging.getLogger("fxh.transport")
# Otherwise paramiko's thread logs a traceback in addition to each of our errors.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

# Preferred key exchanges: they are fast on an emulated host.
_KEX = ("curve25519-sha256@libssh.org", "curve25519-sha256")
# How a connection fails if no machine answers at the address. All other errors come from an answer, or from this machine.
_SILENT = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ECONNRESET)
# RFC 4253, section 4.2. No sshd uses the permission to send other lines first.
_BANNER = b"SSH-"
# SSH_OPEN_CONNECT_FAILED (RFC 4254, section 5.1): the jump host could not connect, for whatever reason.
_CONNECT_FAILED = 2
# Seconds before a deadline that count as its end: paramiko measures with another clock.
_ALMOST = 0.2


class _NoSshd(OSError):
    """The server that answers is not sshd."""


class SshTransport(FileCopies):
    """One connection to ``host``. Each command uses its own channel.

    The host must have the key ``known_host_key`` (a line ``ssh-ed25519 AAAA...``), or else one in the files ``known_hosts``
    (default ``~/.ssh/known_hosts``). The connection goes through the jump host ``over``, which is closed with it.
    Raises TransportError if the host may hang: it does not answer in time, or the connection ends before the banner of its sshd.
    Raises AccessError for any other failure: it refuses the connection or the login, has another key, or the cause is on this machine.
    """

    near = LOOPBACK

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
        # Before the connection: an error of these files says nothing about the host.
        known = None if known_host_key else self._known(host, port, known_hosts)
        keys = sshkeys.load(private_key, (*([key_path] if key_path else []), *key_paths))
        sock = self._socket(host, port, deadline)
        transport = paramiko.Transport(sock)
        try:
            if isinstance(sock, socket.socket):
                _expect_sshd(sock, deadline)
            options = transport.get_security_options()
            options.kex = sorted(options.kex, key=lambda name: name not in _KEX)
            transport.banner_timeout = transport.handshake_timeout = max(1.0, deadline.remaining)
            if known:
                options.key_types = sorted(options.key_types, key=lambda kind: _bare(kind) not in known)
            transport.start_client(timeout=max(0.1, deadline.remaining))
            self._check_key(transport.get_remote_server_key(), host, port, known_host_key, known)
            self._authenticate(transport, user, keys, deadline)
        except (paramiko.SSHException, OSError, EOFError) as exc:
            kind = TransportError if self._is_silent(transport, exc, deadline) else AccessError
            transport.close()
            sock.close()  # transport.close() does not, before start_client()
            raise kind(f"ssh to {self._where}: {plain(str(exc)) or type(exc).__name__}") from exc
        except BaseException:
            transport.close()
            sock.close()
            raise
        # This keeps the connection in the tables of firewalls. It does not show whether the host is alive.
        transport.set_keepalive(30)
        self._transport = transport

    def _socket(self, host: str, port: int, deadline: Deadline) -> socket.socket | paramiko.Channel:
        hint = "check that the host is up and its sshd is running"
        if self._over is not None:
            try:
                return self._over._transport.open_channel(
                    "direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=max(0.1, deadline.remaining)
                )
            except (OSError, paramiko.SSHException, EOFError) as exc:
                # The jump host does not forward, or is gone itself.
                denied = isinstance(exc, paramiko.ChannelException) and exc.code != _CONNECT_FAILED
                kind = AccessError if denied or not self._over.alive else TransportError
                raise kind(f"{self._where} over {self._over.name}: {exc}", hint=hint) from exc
        try:
            return socket.create_connection((host, port), timeout=max(0.1, deadline.remaining), all_errors=True)
        except socket.gaierror as exc:
            name = f"correct the name, or add [hosts.{host}] with its address to fxh.toml"
            raise AccessError(f"{host}: {exc.strerror}", hint=name) from exc
        except OSError as exc:
            raise AccessError(f"{self._where}: {exc}", hint=hint) from exc
        except ExceptionGroup as exc:
            # One for each address. It may hang at one of them, and this machine may lack a route to another.
            silent = [one for one in exc.exceptions if isinstance(one, TimeoutError) or getattr(one, "errno", None) in _SILENT]
            refused = [one for one in exc.exceptions if isinstance(one, ConnectionRefusedError)]
            kind = TransportError if silent else Refused if refused else AccessError
            raise kind(f"{self._where}: {(silent or refused or exc.exceptions)[0]}", hint=hint) from exc

    def _is_silent(self, transport: paramiko.Transport, error: Exception, deadline: Deadline) -> bool:
        """Whether the host did not answer during the login: until the deadline, or it ended the connection before its banner."""
        if deadline.remaining < _ALMOST:
            return True
        if self._over is not None and not self._over.alive:
            return False
        return not transport.remote_version and not isinstance(error, _NoSshd)

    @staticmethod
    def _known(host: str, port: int, paths: Sequence[Path]) -> Mapping[str, paramiko.PKey]:
        """The keys of the host in the known_hosts files, by type."""
        hosts = paramiko.HostKeys()
        for path in paths or (Path("~/.ssh/known_hosts").expanduser(),):
            try:
                if path.exists():
                    hosts.load(str(path))
            except (OSError, ValueError, InvalidHostKey) as exc:
                raise AccessError(f"cannot read {path}: {exc}", hint="correct this file of known hosts") from exc
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

    def _authenticate(self, transport: paramiko.Transport, user: str, keys: sshkeys.Keys, deadline: Deadline) -> None:
        for count, key in enumerate(keys.usable, 1):
            transport.auth_timeout = max(1.0, deadline.remaining)
            try:
                transport.auth_publickey(user, key)
                return
            except (paramiko.SSHException, EOFError) as exc:
                if deadline.expired:
                    raise
                if not transport.is_active():
                    raise AccessError(
                        f"ssh to {self._where}: the host ended the connection after {count} of {len(keys.usable)} keys{keys.remark}",
                        hint="set the `key` of this host in fxh.toml, or IdentityFile in ~/.ssh/config: sshd limits the attempts",
                    ) from exc
        raise paramiko.AuthenticationException(f"the host accepts no key of the agent or of ~/.ssh for {user}{keys.remark}")

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
                if not moved and unsent:
                    # A select() would not notice room in the window, and dropbear's window has 24 KB.
                    _wait_for_room(channel, min(0.02, deadline.remaining))
                elif not moved:
                    select.select([channel], [], [], min(0.1, deadline.remaining))
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

    def connect(self, port: int) -> Stream:
        try:
            return ChannelStream(self._transport.open_channel("direct-tcpip", (LOOPBACK, port), (LOOPBACK, 0), timeout=10))
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise TransportError(f"{self.name} cannot connect to its port {port}: {exc}") from exc

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


# Seconds without a taken byte until a write fails.
_PATIENCE = 30.0


def _wait_for_room(channel: paramiko.Channel, seconds: float) -> bool:
    """Whether the channel's window has room within ``seconds``, or the channel is closed."""
    with channel.out_buffer_cv:
        return channel.out_buffer_cv.wait_for(lambda: channel.closed or channel.out_window_size > 0, seconds)


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
        """Raises TransportError if the other end takes nothing for 30 s."""
        unsent = memoryview(data)
        try:
            with self._lock:
                while unsent:
                    # sendall() would use the time-out of a thread that reads meanwhile (findings/paramiko_shared_timeout.sh). send()
                    # does not wait while there is room in the window, and fails if the channel is closed.
                    if not _wait_for_room(self._channel, _PATIENCE):
                        raise TransportError(f"cannot write to the stream: the other end takes nothing for {_PATIENCE:.0f} s")
                    unsent = unsent[self._channel.send(bytes(unsent)) :]
        except (OSError, EOFError) as exc:
            raise TransportError(f"cannot write to the stream: {exc or 'it is closed'}") from exc

    def close(self) -> None:
        self._channel.close()


def _expect_sshd(sock: socket.socket, deadline: Deadline) -> None:
    """Look at the first bytes of the server. Raises _NoSshd; paramiko would wait for a banner after any other lines."""
    before = sock.gettimeout()
    sock.settimeout(max(0.1, deadline.remaining))
    first = sock.recv(64, socket.MSG_PEEK)
    sock.settimeout(before)
    if first and not first.startswith(_BANNER[: len(first)]):
        raise _NoSshd(f"the server is not sshd: it says {plain(first.decode('utf-8', 'replace')).strip()!r}")


def _bare(kind: str) -> str:
    """The type of key for a signature algorithm, as known_hosts names it."""
    return "ssh-rsa" if kind.startswith("rsa-sha2") else kind


def fingerprint(key: paramiko.PKey) -> str:
    """The fingerprint that ``ssh-keygen -l`` prints: ``SHA256:...``."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
