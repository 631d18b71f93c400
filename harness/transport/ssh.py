"""ssh to a host, by paramiko; host keys are checked, and unknown ones refused unless told otherwise."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import select
import shlex
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import paramiko

from harness.deadline import Deadline
from harness.errors import CommandFailed, DeadlineExpired, InfrastructureError, TransportError
from harness.transport import Completed, Stream
from harness.transport.files import FileCopies

log = logging.getLogger("fxh.transport")
# Our errors say what went wrong; paramiko's thread would print a traceback beside each.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

_DEFAULT = 120.0
# Quick under emulation, where the far end computes without hardware help.
_KEX = ("curve25519-sha256@libssh.org", "curve25519-sha256")


class SshTransport(FileCopies):
    """One connection to ``host``, used by all; every command has a channel of its own.

    ``known_host_key`` is the line ``ssh-ed25519 AAAA...`` the host must show; without it ``~/.ssh/known_hosts`` is asked.
    Raises TransportError when the host cannot be reached, or shows another key.
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
        accept_unknown: bool = False,
        name: str = "",
        deadline: Deadline | None = None,
    ) -> None:
        deadline = deadline or Deadline(20)
        self.name = name or f"{user}@{host}"
        self._where = f"{host} port {port}"
        try:
            sock = socket.create_connection((host, port), timeout=max(0.1, deadline.remaining))
        except OSError as exc:
            raise TransportError(f"{self._where}: {exc}", mend="is the host up and its sshd listening?") from exc
        transport = paramiko.Transport(sock)
        try:
            options = transport.get_security_options()
            options.kex = tuple(name for name in options.kex if name in _KEX) or options.kex
            transport.banner_timeout = transport.auth_timeout = max(1.0, deadline.remaining)
            transport.start_client(timeout=max(0.1, deadline.remaining))
            self._check_key(transport.get_remote_server_key(), host, port, known_host_key, accept_unknown)
            self._authenticate(transport, user, private_key, key_path)
        except (paramiko.SSHException, OSError, EOFError) as exc:
            transport.close()
            raise TransportError(f"ssh to {self._where}: {exc or type(exc).__name__}") from exc
        except InfrastructureError:
            transport.close()
            raise
        # Not used for liveness (the lab has a pulse of its own), but it keeps middle boxes from forgetting us.
        transport.set_keepalive(30)
        self._transport = transport

    def _check_key(self, key: paramiko.PKey, host: str, port: int, known: str, accept_unknown: bool) -> None:
        shown = f"{key.get_name()} {key.get_base64()}"
        if known:
            if shown != known:
                raise TransportError(
                    f"{self._where} shows another host key ({fingerprint(key)}) than the one pinned",
                    mend="if the host was reinstalled, remove the old key; else somebody is in between",
                )
            return
        hosts = paramiko.HostKeys()
        path = Path("~/.ssh/known_hosts").expanduser()
        if path.exists():
            hosts.load(str(path))
        label = host if port == 22 else f"[{host}]:{port}"
        entry = hosts.lookup(label)
        if entry is None or key.get_name() not in entry:
            if accept_unknown:
                return
            raise TransportError(
                f"{self._where} shows a host key that is not known: {key.get_name()} {fingerprint(key)}",
                mend=f"compare it with the host's, then ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts",
            )
        if entry[key.get_name()] != key:
            raise TransportError(f"{self._where} shows another host key ({fingerprint(key)}) than ~/.ssh/known_hosts has")

    @staticmethod
    def _authenticate(transport: paramiko.Transport, user: str, private_key: str, key_path: Path | None) -> None:
        if private_key:
            transport.auth_publickey(user, paramiko.Ed25519Key.from_private_key(io.StringIO(private_key)))
        elif key_path:
            transport.auth_publickey(user, paramiko.PKey.from_path(key_path))
        else:
            keys: list[paramiko.PKey] = list(paramiko.Agent().get_keys())
            for path in ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"):
                if Path(path).expanduser().exists():
                    keys.append(paramiko.PKey.from_path(Path(path).expanduser()))
            for key in keys:
                try:
                    transport.auth_publickey(user, key)
                    return
                except paramiko.AuthenticationException:
                    continue
            raise paramiko.AuthenticationException("no key of the agent or of ~/.ssh was accepted")

    def run(self, argv: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        deadline = deadline or Deadline(_DEFAULT)
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
                    raise DeadlineExpired(f"{self.name}: no end within {deadline.seconds:.0f} s of: {line}")
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
            # A host that dies closes the channel without a status.
            status = channel.exit_status if channel.exit_status_ready() else -1
        except (OSError, paramiko.SSHException, EOFError) as exc:
            raise TransportError(f"ssh to {self.name} dropped during: {line} ({exc})") from exc
        finally:
            channel.close()
        if status == -1 and not self._transport.is_active():
            raise TransportError(f"ssh to {self.name} dropped during: {line}")
        done = Completed(tuple(argv), status, bytes(out), bytes(err))
        if check and status != 0:
            raise CommandFailed(line, status, done.text, done.stderr.decode("utf-8", "replace"))
        return done

    def open(self, argv: Sequence[str], *, pty: bool = False) -> Stream:
        channel = self._channel(shlex.join(argv), Deadline(_DEFAULT), pty=pty)
        if not pty:
            channel.set_combine_stderr(True)
        return ChannelStream(channel)

    def forward(self, host: str, port: int) -> Stream:
        """A TCP connection made from the far side."""
        try:
            return ChannelStream(self._transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=10))
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise TransportError(f"{self.name} could not connect to {host} port {port}: {exc}") from exc

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    def close(self) -> None:
        self._transport.close()

    def _channel(self, line: str, deadline: Deadline, pty: bool = False) -> paramiko.Channel:
        try:
            channel = self._transport.open_session(timeout=max(0.1, deadline.remaining))
            if pty:
                channel.get_pty("vt100", 200, 50)
            channel.exec_command(line)
            return channel
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise TransportError(f"ssh to {self.name} dropped before: {line} ({exc or type(exc).__name__})") from exc


class ChannelStream:
    """A channel as a Stream."""

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


def fingerprint(key: paramiko.PKey) -> str:
    """As ``ssh-keygen -l`` prints it: ``SHA256:...``."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
