# SPDX-License-Identifier: BSD-2-Clause
"""The one way in which a mail leaves this machine: where ``[mail]`` of fxh.toml says, over verified TLS, with its login."""

from __future__ import annotations

import contextlib
import os
import re
import smtplib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from harness.config.schema import MAIL_SECURITY, MailConfig
from harness.errors import InfrastructureError, UsageError

_TIMEOUT = 60.0
"""Seconds without a byte from the server."""
_SMTP_PORT, _TLS_PORT = 25, 465


@dataclass(frozen=True)
class Server:
    """Where mails go. ``security`` is ``tls`` (from the first byte), ``starttls``, ``offered`` (STARTTLS if offered) or ``none``."""

    host: str
    port: int
    security: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def server(config: MailConfig) -> Server:
    """The server of ``mail.smtp``, and how the connection is protected (``mail.security``). Raises UsageError.

    ``auto`` is ``tls`` on port 465 and ``starttls`` with a login, so that no password is ever sent in the clear. Without a login
    it is STARTTLS where the server offers it, and nothing for a server on this machine, whose certificate nobody signed.
    """
    host, port = _host_and_port(config.smtp)
    security = config.security
    if security not in MAIL_SECURITY:
        raise UsageError(f"mail.security {security!r}", hint=", ".join(MAIL_SECURITY))
    if security == "auto":
        if port == _TLS_PORT:
            security = "tls"
        elif config.user:
            security = "starttls"
        else:
            security = "none" if _here(host) else "offered"
    if security == "none" and config.user and not _here(host):
        raise UsageError(
            f'mail.security "none" with mail.user: the password would go to {host} in the clear', hint='use "starttls" or "tls"'
        )
    return Server(host, port or (_TLS_PORT if security == "tls" else _SMTP_PORT), security)


def send(message: EmailMessage, config: MailConfig, kept: Path) -> None:
    """Hand ``message`` to the server of ``config``, for everybody in its To. Returns when the server has taken it for all of them.

    ``kept`` is the mail's file, which errors name: nothing is lost when it cannot be sent.

    Raises UsageError for a configuration that cannot work, InfrastructureError when the server cannot be reached, cannot prove who it
    is, refuses the login, the mail or one of its recipients.
    """
    where = server(config)
    secret = password(config)
    context = _context(config) if where.security != "none" else None
    try:
        smtp = _connected(where, context)
        try:
            if config.user:
                smtp.login(config.user, secret)
            body = ["BODY=8BITMIME"] if smtp.has_extn("8bitmime") else []
            refused = smtp.send_message(message, mail_options=body)
        finally:
            # The mail was taken or refused by now: how the server says goodbye changes neither.
            with contextlib.suppress(OSError):
                smtp.quit()
            smtp.close()
    except (OSError, UnicodeError) as exc:  # smtplib's and ssl's errors are OSErrors, too
        error = _explained(exc, where, config)
        error.hint = "; ".join(filter(None, (error.hint, f"the mail is kept in {kept}")))
        raise error from exc
    if refused:
        raise InfrastructureError(f"mail over {where}: refused for {_refusals(refused)}; the others got it", hint="see mail.to")


def password(config: MailConfig) -> str:
    """The password of ``mail.user``, from FXH_MAIL_PASSWORD or ``mail.password_file``; "" without a user. Raises UsageError."""
    if not config.user:
        if config.password_file:
            raise UsageError("mail.password_file without mail.user", hint="name the user that the password is for")
        return ""
    given = os.environ.get("FXH_MAIL_PASSWORD", "")
    if not given and config.password_file:
        try:
            given = Path(config.password_file).expanduser().read_text().strip()
        except OSError as exc:
            raise UsageError(f"mail.password_file: {exc.strerror}: {config.password_file}") from exc
        except ValueError as exc:
            raise UsageError(f"mail.password_file: {config.password_file} is not text") from exc
    if not given:
        raise UsageError(
            f"mail.user {config.user!r} without a password", hint="name a file in mail.password_file, or set FXH_MAIL_PASSWORD"
        )
    return given


def addresses(texts: Iterable[str], what: str, *, local: bool = False) -> tuple[Address, ...]:
    """Addresses from ``user@host`` or ``Name <user@host>``, by commas; with ``local`` also a user of this machine (``root``).

    ``what`` names the setting in the UsageError for one that is no address.
    """
    found: list[Address] = []
    for text in texts:
        if local and re.fullmatch(r"[A-Za-z0-9._-]+", text):
            found.append(Address(username=text))
            continue
        try:
            header: Any = HeaderRegistry()("To", text)
            if header.defects or not header.addresses:
                raise ValueError
        except (ValueError, IndexError) as exc:
            raise UsageError(f"{what} {text!r} is no mail address", hint="give user@host") from exc
        found += header.addresses
    return tuple(found)


def _host_and_port(text: str) -> tuple[str, int]:
    """``mail.example.org``, ``mail.example.org:587``, ``[2001:db8::25]:25``; port 0 where none is given."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", text)
    if not match or (match[3] and not 0 < int(match[3]) < 1 << 16):
        raise UsageError(f"mail.smtp {text!r}", hint="give HOST or HOST:PORT, an IPv6 address as [ADDRESS]:PORT")
    return match[1] or match[2], int(match[3] or 0)


def _here(host: str) -> bool:
    """Whether it is this machine: what is sent there passes no network."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(config: MailConfig) -> ssl.SSLContext:
    """Verifies the server's certificate and name: by the system's CAs, or by those of ``mail.ca_file`` alone. Raises UsageError."""
    path = str(Path(config.ca_file).expanduser()) if config.ca_file else None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as exc:  # ssl.SSLError is one
        raise UsageError(
            f"mail.ca_file {config.ca_file}: {exc.strerror or exc}", hint="give a file with CA certificates in PEM"
        ) from exc


def _connected(where: Server, context: ssl.SSLContext | None) -> smtplib.SMTP:
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


def _explained(exc: OSError | UnicodeError, where: Server, config: MailConfig) -> InfrastructureError | UsageError:
    """What went wrong, in words, and what helps."""
    start = f"mail over {where}:"
    match exc:
        case UnicodeError():
            return UsageError(f"{start} mail.user, its password or an address is not ASCII, which SMTP cannot carry")
        case ssl.SSLCertVerificationError():
            trusted = config.ca_file or "the system's CA certificates"
            return InfrastructureError(
                f"{start} its certificate is refused: {exc.verify_message}",
                hint=f"name the server as its certificate does, or the file of its CA in mail.ca_file (checked with {trusted})",
            )
        case ssl.SSLError():
            return InfrastructureError(
                f"{start} no TLS: {exc.reason or exc}",
                hint='is the port right? mail.security is "tls" on 465, "starttls" on 587 and 25',
            )
        case smtplib.SMTPAuthenticationError():
            return InfrastructureError(
                f"{start} the login of {config.user!r} is refused: {_said(exc)}", hint="see mail.user and mail.password_file"
            )
        case smtplib.SMTPRecipientsRefused():
            return InfrastructureError(f"{start} refused for {_refusals(exc.recipients)}", hint="see mail.to")
        case smtplib.SMTPSenderRefused():
            return InfrastructureError(f"{start} the sender {exc.sender} is refused: {_said(exc)}", hint="see mail.sender")
        case smtplib.SMTPNotSupportedError() if "STARTTLS" in str(exc):
            return InfrastructureError(
                f"{start} it offers no STARTTLS, and without TLS no password is sent",
                hint='mail.security = "tls" with its TLS port (465)',
            )
        case smtplib.SMTPResponseException():
            return InfrastructureError(f"{start} {_said(exc)}")
        case TimeoutError():
            return InfrastructureError(f"{start} no answer within {_TIMEOUT:.0f} s", hint="see mail.smtp")
        case smtplib.SMTPException():
            return InfrastructureError(f"{start} {exc}")
        case _:
            return InfrastructureError(f"{start} {exc.strerror or exc}", hint="see mail.smtp")


def _said(exc: smtplib.SMTPResponseException) -> str:
    """The server's reply, in one line: ``535 5.7.8 authentication failed``."""
    return _reply(exc.smtp_code, exc.smtp_error)


def _refusals(refused: dict[str, tuple[int, bytes]]) -> str:
    return ", ".join(f"{address} ({_reply(*reply)})" for address, reply in refused.items())


def _reply(code: int, text: bytes | str) -> str:
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return f"{code} {' '.join(words.split())}"[:300]
