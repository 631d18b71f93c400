# SPDX-License-Identifier: BSD-2-Clause
"""Send mails through the server of ``[mail]`` in fxh.toml, over verified TLS and with its login. Only this module sends mail."""

from __future__ import annotations

import contextlib
import os
import smtplib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from ipaddress import ip_address
from pathlib import Path

from harness.config import addresses
from harness.config.schema import MailConfig
from harness.errors import InfrastructureError, UsageError

_TIMEOUT = 60.0
"""Seconds to wait for a byte from the server."""
_SMTP_PORT, _TLS_PORT = 25, 465


@dataclass(frozen=True)
class Server:
    """An SMTP server. ``security`` is ``tls`` (from the first byte), ``starttls``, ``offered`` (STARTTLS if offered) or ``none``."""

    host: str
    port: int
    security: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def server(config: MailConfig) -> Server:
    """The server of ``mail.smtp`` with the protection of ``mail.security``. Raises UsageError.

    ``auto`` is ``tls`` on port 465, and ``starttls`` with a login, so that no password is sent unencrypted. Without a login it is
    ``offered``, but ``none`` for a server on this machine, which usually has a self-signed certificate.
    """
    host, port = addresses.server(config.smtp)
    security = config.security
    if security == "auto":
        if port == _TLS_PORT:
            security = "tls"
        elif config.user:
            security = "starttls"
        else:
            security = "none" if _is_local(host) else "offered"
    if security == "none" and config.user and not _is_local(host):
        raise UsageError(
            f'mail.security "none" with mail.user: the password would be sent to {host} unencrypted', hint='use "starttls" or "tls"'
        )
    return Server(host, port or (_TLS_PORT if security == "tls" else _SMTP_PORT), security)


def to_operators(subject: str, text: Iterable[str], config: MailConfig, machine: str) -> EmailMessage:
    """A mail about the infrastructure, which says nothing about the product. ``machine`` is the sender's. Raises UsageError."""
    message = EmailMessage()
    message["Subject"] = f"[fxh infrastructure] {subject}"
    message["From"] = addresses.mailboxes([config.sender or f"fxh@{machine}"], "mail.sender", local=True)
    message["To"] = addresses.mailboxes(config.infrastructure_to or config.to or ("root",), "mail.infrastructure_to", local=True)
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=machine)
    message["Auto-Submitted"] = "auto-generated"
    # A line of a mail has at most 998 bytes. With 8bit, a log is also readable in the mail's file.
    lines = [line[at : at + 240] for part in text for line in part.splitlines() or [""] for at in range(0, len(line) or 1, 240)]
    message.set_content("\n".join(lines) + "\n", cte="8bit")
    return message


def deliver(message: EmailMessage, config: MailConfig, path: Path) -> None:
    """Write the mail to ``path``, and send it if ``mail.send`` is true. Raises InfrastructureError, UsageError."""
    path.write_bytes(bytes(message))
    if config.send:
        send(message, config, path)


def check(config: MailConfig) -> None:
    """Read all that :func:`send` needs from this machine: the CA certificates and the password. Raises UsageError."""
    if server(config).security != "none":
        _context(config)
    password(config)


def send(message: EmailMessage, config: MailConfig, kept: Path) -> None:
    """Send ``message`` to all addresses in its To. Returns when the server has accepted it for all of them.

    ``kept`` is the file of the mail. Errors name it, so that a mail that was not sent can be found.

    Raises UsageError for an invalid configuration. Raises InfrastructureError if the server cannot be reached, has an invalid
    certificate, or refuses the login, the mail or one of its recipients.
    """
    where = server(config)
    secret = password(config)
    context = _context(config) if where.security != "none" else None
    try:
        smtp = _connect(where, context)
        try:
            if config.user:
                smtp.login(config.user, secret)
            body = ["BODY=8BITMIME"] if smtp.has_extn("8bitmime") else []
            refused = smtp.send_message(message, mail_options=body)
        finally:
            # The mail is already accepted or refused, so an error here does not matter.
            with contextlib.suppress(OSError):
                smtp.quit()
            smtp.close()
    except (OSError, UnicodeError) as exc:  # the errors of smtplib and ssl are subclasses of OSError
        error = _explain(exc, where, config)
        error.hint = "; ".join(filter(None, (error.hint, f"the mail is kept in {kept}")))
        raise error from exc
    if refused:
        raise InfrastructureError(
            f"mail over {where}: refused for {_refusals(refused)}; sent to the others", hint="correct mail.to"
        )


def password(config: MailConfig) -> str:
    """The password of ``mail.user``, from FXH_MAIL_PASSWORD or ``mail.password_file``; "" without a user. Raises UsageError."""
    if not config.user:
        if config.password_file:
            raise UsageError("mail.password_file without mail.user", hint="set mail.user to the user of that password")
        return ""
    secret = os.environ.get("FXH_MAIL_PASSWORD", "")
    if not secret and config.password_file:
        try:
            secret = Path(config.password_file).expanduser().read_text().strip()
        except OSError as exc:
            raise UsageError(f"mail.password_file: {exc.strerror}: {config.password_file}") from exc
        except ValueError as exc:
            raise UsageError(f"mail.password_file: {config.password_file} is not a text file") from exc
    if not secret:
        raise UsageError(f"mail.user {config.user!r} without a password", hint="set mail.password_file or FXH_MAIL_PASSWORD")
    return secret


def _is_local(host: str) -> bool:
    """Whether ``host`` is this machine, so that its mail crosses no network."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(config: MailConfig) -> ssl.SSLContext:
    """Verify certificate and name of the server against ``mail.ca_file`` or, without it, the system's CAs. Raises UsageError."""
    path = str(Path(config.ca_file).expanduser()) if config.ca_file else None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as exc:  # includes ssl.SSLError
        raise UsageError(
            f"mail.ca_file {config.ca_file}: {exc.strerror or exc}", hint="use a PEM file with CA certificates"
        ) from exc


def _connect(where: Server, context: ssl.SSLContext | None) -> smtplib.SMTP:
    if where.security == "tls":
        return smtplib.SMTP_SSL(where.host, where.port, timeout=_TIMEOUT, context=context)
    smtp = smtplib.SMTP(where.host, where.port, timeout=_TIMEOUT)
    try:
        smtp.ehlo_or_helo_if_needed()
        if where.security == "starttls" or (where.security == "offered" and smtp.has_extn("starttls")):
            smtp.starttls(context=context)
            smtp.ehlo()
    except BaseException:
        smtp.close()
        raise
    return smtp


def _explain(exc: OSError | UnicodeError, where: Server, config: MailConfig) -> InfrastructureError | UsageError:
    """Turn an exception into an error with a message and a hint."""
    start = f"mail over {where}:"
    match exc:
        case UnicodeError():
            return UsageError(f"{start} mail.user, its password or an address is not ASCII", hint="SMTP needs ASCII here")
        case ssl.SSLCertVerificationError():
            trusted = config.ca_file or "the system's CA certificates"
            return InfrastructureError(
                f"{start} invalid certificate: {exc.verify_message}",
                hint=f"use the host name of the certificate in mail.smtp, or set mail.ca_file to its CA (checked with {trusted})",
            )
        case ssl.SSLError():
            return InfrastructureError(
                f"{start} TLS failed: {exc.reason or exc}",
                hint='check the port: mail.security is "tls" on 465, "starttls" on 587 and 25',
            )
        case smtplib.SMTPAuthenticationError():
            return InfrastructureError(
                f"{start} login of {config.user!r} refused: {_response(exc)}", hint="check mail.user and mail.password_file"
            )
        case smtplib.SMTPRecipientsRefused():
            return InfrastructureError(f"{start} refused for {_refusals(exc.recipients)}", hint="correct mail.to")
        case smtplib.SMTPSenderRefused():
            return InfrastructureError(f"{start} sender {exc.sender} refused: {_response(exc)}", hint="correct mail.sender")
        case smtplib.SMTPNotSupportedError() if "STARTTLS" in str(exc):
            return InfrastructureError(
                f"{start} the server offers no STARTTLS, and the password is not sent without TLS",
                hint='use mail.security = "tls" with the TLS port (465)',
            )
        case smtplib.SMTPResponseException():
            return InfrastructureError(f"{start} {_response(exc)}")
        case TimeoutError():
            return InfrastructureError(f"{start} no answer within {_TIMEOUT:.0f} s", hint="check mail.smtp")
        case smtplib.SMTPException():
            return InfrastructureError(f"{start} {exc}")
        case _:
            return InfrastructureError(f"{start} {exc.strerror or exc}", hint="check mail.smtp")


def _response(exc: smtplib.SMTPResponseException) -> str:
    """The server's reply in one line, for example ``535 5.7.8 authentication failed``."""
    return _reply(exc.smtp_code, exc.smtp_error)


def _refusals(refused: dict[str, tuple[int, bytes]]) -> str:
    return ", ".join(f"{address} ({_reply(*reply)})" for address, reply in refused.items())


def _reply(code: int, text: bytes | str) -> str:
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return f"{code} {' '.join(words.split())}"[:300]
