# SPDX-License-Identifier: BSD-2-Clause
"""The mailer with a real SMTP server on this machine, and a CA that the test creates."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner
from written import case, run, save

from harness import mailer
from harness import report as reporting
from harness.cli.main import make_app
from harness.config import addresses
from harness.config.schema import MailConfig
from harness.errors import HarnessError, InfrastructureError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
USER, PASSWORD = "fxh", "correct horse"


class Authority:
    """A CA for one test."""

    def __init__(self, directory: Path, name: str) -> None:
        self.key, self.name, self.directory = ec.generate_private_key(ec.SECP256R1()), _name(name), directory
        self.certificate = self._sign(self.name, self.key, ca=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str, *, expired: bool = False) -> ssl.SSLContext:
        """The TLS context of a server with a certificate for ``name``, a host or an address."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(name), key, host=name, expired=expired)
        file = self.directory / f"server-{name}.pem"
        file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context

    def _sign(self, name: x509.Name, key: Any, *, host: str = "", ca: bool = False, expired: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        end = now - datetime.timedelta(hours=1) if expired else now + datetime.timedelta(days=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(self.name).public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        if host:
            alternative = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Inbox:
    """The mails and logins that a server got. It refuses the recipients in ``refuses``."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.refuses: set[str] = set()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
        if address in self.refuses:
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        self.mails.append(envelope)
        return "250 accepted"

    def authenticate(self, server: Any, session: Any, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        right = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=right, handled=False)  # then aiosmtpd answers 535


Serve = Callable[..., MailConfig]
HOST = "127.0.0.1"


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
def serve(tmp_path: Path, inbox: Inbox, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """``serve(**settings)`` starts a server, by default with login and TLS, and returns a matching configuration."""
    monkeypatch.delenv("FXH_MAIL_PASSWORD", raising=False)
    controllers: list[Controller] = []
    (tmp_path / "secret").write_text(f"{PASSWORD}\n")

    def start(*, tls: ssl.SSLContext | None = None, implicit: bool = False, login: bool = True, **settings: Any) -> MailConfig:
        words: dict[str, Any] = {"ssl_context": tls} if implicit else {"tls_context": tls}
        if login:
            # aiosmtpd does not notice TLS that started before SMTP.
            words |= {"authenticator": inbox.authenticate, "auth_required": True, "auth_require_tls": not implicit}
        with socket.create_server((HOST, 0)) as free:
            port = free.getsockname()[1]
        controller = Controller(inbox, HOST, port, **words)
        controller.start()
        controllers.append(controller)
        usual: dict[str, Any] = {
            "smtp": f"{HOST}:{port}",
            "ca_file": str(authority.file),
            "send": True,
            "to": ("devs@example.org",),
        }
        if login:
            usual |= {"user": USER, "password_file": str(tmp_path / "secret")}
        return MailConfig(**usual | settings)

    yield start
    for controller in controllers:
        controller.stop()


def message(to: str = "a@example.org") -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "fxh@example.org", to, "hello"
    mail.set_content("Grüße\n", cte="8bit")
    return mail


KEPT = Path("a.eml")


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "tls"])
def test_login_over_verified_tls(serve: Serve, inbox: Inbox, authority: Authority, implicit: bool) -> None:
    config = serve(tls=authority.server(HOST), implicit=implicit, security="tls" if implicit else "auto")
    mailer.send(message("a@example.org, b@example.org"), config, KEPT)
    assert inbox.logins == [(USER.encode(), PASSWORD.encode())]
    assert [mail.rcpt_tos for mail in inbox.mails] == [["a@example.org", "b@example.org"]]
    content = inbox.mails[0].content
    assert isinstance(content, bytes)
    assert "Grüße".encode() in content


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "tls"])
@pytest.mark.parametrize("fault", ["unknown CA", "the system's CAs", "other host", "expired"])
def test_a_wrong_certificate_is_refused(
    serve: Serve, inbox: Inbox, authority: Authority, tmp_path: Path, fault: str, implicit: bool
) -> None:
    signer = Authority(tmp_path, "other") if fault == "unknown CA" else authority
    tls = signer.server("127.0.0.2" if fault == "other host" else HOST, expired=fault == "expired")
    settings = {"ca_file": ""} if fault == "the system's CAs" else {}
    config = serve(tls=tls, implicit=implicit, security="tls" if implicit else "starttls", **settings)
    with pytest.raises(InfrastructureError, match="invalid certificate") as caught:
        mailer.send(message(), config, KEPT)
    assert "mail.ca_file" in caught.value.hint
    assert "a.eml" in caught.value.hint
    assert (inbox.mails, inbox.logins) == ([], [])


def test_no_password_is_sent_unencrypted(serve: Serve, inbox: Inbox) -> None:
    """The password stays here if the server offers no STARTTLS, or if an attacker removes the offer."""
    config = serve(tls=None)
    with pytest.raises(InfrastructureError, match="offers no STARTTLS"):
        mailer.send(message(), config, KEPT)
    assert inbox.logins == []
    with pytest.raises(UsageError, match="unencrypted"):
        mailer.server(MailConfig(smtp="mail.example.org", user=USER, security="none"))


def test_a_refused_login_is_reported(serve: Serve, inbox: Inbox, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve(tls=authority.server(HOST))
    monkeypatch.setenv("FXH_MAIL_PASSWORD", "wrong")
    with pytest.raises(InfrastructureError, match="login of 'fxh' refused: 535"):
        mailer.send(message(), config, KEPT)
    assert inbox.mails == []
    monkeypatch.setenv("FXH_MAIL_PASSWORD", "wörld")
    with pytest.raises(UsageError, match="not ASCII"):
        mailer.send(message(), config, KEPT)


def test_refused_recipients_are_named(serve: Serve, inbox: Inbox) -> None:
    config = serve(login=False)
    inbox.refuses = {"b@example.org"}
    with pytest.raises(InfrastructureError, match=r"refused for b@example\.org \(550 5.1.1 no such user\); sent to the others"):
        mailer.send(message("a@example.org, b@example.org"), config, KEPT)
    assert len(inbox.mails) == 1
    with pytest.raises(InfrastructureError, match=r"refused for b@example\.org"):
        mailer.send(message("b@example.org"), config, KEPT)


def test_a_server_on_this_machine_needs_no_tls(serve: Serve, inbox: Inbox, tmp_path: Path) -> None:
    """Debian's server offers STARTTLS with a self-signed certificate; the mail crosses no network."""
    config = serve(tls=Authority(tmp_path, "nobody").server("snakeoil"), login=False, ca_file="")
    mailer.send(message(), config, KEPT)
    assert len(inbox.mails) == 1


def test_starttls_is_used_if_offered_and_verified(
    serve: Serve, inbox: Inbox, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a remote server without a login."""
    monkeypatch.setattr(mailer, "_is_local", lambda _: False)
    mailer.send(message(), serve(login=False), KEPT)
    mailer.send(message(), serve(login=False, tls=authority.server(HOST)), KEPT)
    assert len(inbox.mails) == 2
    with pytest.raises(InfrastructureError, match="invalid certificate"):
        mailer.send(message(), serve(login=False, tls=authority.server(HOST), ca_file=""), KEPT)
    assert len(inbox.mails) == 2


def test_tls_on_a_plain_port_is_reported(serve: Serve) -> None:
    with pytest.raises(InfrastructureError, match="TLS failed"):
        mailer.send(message(), serve(login=False, security="tls"), KEPT)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "localhost:25 none"),
        ({"smtp": "mail.example.org"}, "mail.example.org:25 offered"),
        ({"smtp": "mail.example.org:587", "user": "u"}, "mail.example.org:587 starttls"),
        ({"smtp": "mail.example.org:465"}, "mail.example.org:465 tls"),
        ({"smtp": "mail.example.org", "security": "tls"}, "mail.example.org:465 tls"),
        ({"smtp": "[2001:db8::25]:2525"}, "[2001:db8::25]:2525 offered"),
        ({"smtp": "[::1]"}, "[::1]:25 none"),
        ({"smtp": "127.0.0.1:25", "security": "starttls"}, "127.0.0.1:25 starttls"),
    ],
)
def test_port_and_security_of_a_server(settings: dict[str, Any], expected: str) -> None:
    found = mailer.server(MailConfig(**settings))
    assert f"{found} {found.security}" == expected


@pytest.mark.parametrize(
    "smtp", ["", ":25", "host:", "host:port", "host:0", "host:99999", "smtp://host", "u@host", "::1", "host/x", "a b"]
)
def test_an_invalid_server_is_refused(smtp: str) -> None:
    with pytest.raises(UsageError, match="invalid server"):
        mailer.server(MailConfig(smtp=smtp))


def test_an_invalid_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FXH_MAIL_PASSWORD", raising=False)
    (tmp_path / "empty").touch()
    for words, settings in (
        ("without mail.user", {"password_file": "/none"}),
        ("No such file", {"user": "u", "password_file": "/none"}),
        ("without a password", {"user": "u"}),
        ("without a password", {"user": "u", "password_file": str(tmp_path / "empty")}),
        ("mail.ca_file /none", {"security": "tls", "ca_file": "/none"}),
        ("mail.ca_file", {"security": "tls", "ca_file": str(tmp_path / "empty")}),
    ):
        with pytest.raises(UsageError, match=words):
            mailer.send(message(), MailConfig(**settings), KEPT)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=words):
            mailer.check(MailConfig(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@b, c@d", "a@b, c@d"),
        ('"Doe, J" <j@x.org>', '"Doe, J" <j@x.org>'),
        ("root", "root"),
        ("a@", None),
        ("no address", None),
        ("a@b\r\nBcc: c@d", None),
        ("", None),
    ],
)
def test_addresses(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UsageError, match=r"mail\.to .* is not a mail address"):
            addresses.mailboxes([text], "mail.to", local=True)
        return
    assert ", ".join(map(str, addresses.mailboxes([text], "mail.to", local=True))) == expected


# -- both mails, through the commands ------------------------------------------------------------------------------------------


@pytest.fixture
def configured(serve: Serve, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MailConfig:
    """An fxh.toml for a server with a login."""
    config = serve(tls=authority.server(HOST))
    settings = {
        "send": True, "sender": "fxh@example.org", "to": ["devs@example.org", "list@example.org"],
        "infrastructure_to": ["ops@example.org"], "smtp": config.smtp, "ca_file": config.ca_file, "user": USER,
        "password_file": config.password_file,
    }  # fmt: skip
    file = tmp_path / "fxh.toml"
    # These JSON values are also valid TOML.
    file.write_text("[mail]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    monkeypatch.setenv("FXH_CONFIG", str(file))
    return config


def fxh(*words: str) -> int:
    result = CliRunner().invoke(make_app(), [*words], catch_exceptions=True)
    if isinstance(result.exception, HarnessError):
        raise result.exception
    return result.exit_code


def test_the_verdict_arrives(configured: MailConfig, inbox: Inbox, tmp_path: Path) -> None:
    done = run(1, case("F"), exit_code=1)
    path = save(tmp_path / "reports", done)
    reporting.publish(path, done)
    assert fxh("report", done.run, "--send", "--reports", str(tmp_path / "reports")) == 1
    (mail,) = inbox.mails
    assert (mail.mail_from, mail.rcpt_tos) == ("fxh@example.org", ["devs@example.org", "list@example.org"])
    assert inbox.logins == [(USER.encode(), PASSWORD.encode())]
    # Without --send, fxh report sends nothing: mail.send applies to nightly jobs only.
    assert fxh("report", done.run, "--mail", "--reports", str(tmp_path / "reports")) == 1
    assert len(inbox.mails) == 1


def test_a_nightly_job_sends_both_mails(
    configured: MailConfig, inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report step sends the verdict in its own process. The run step fails, so the job sends the infrastructure mail."""
    done = run(1, case("F"), exit_code=1)
    path = save(tmp_path / "reports", done)
    reporting.publish(path, done)
    (tmp_path / "reports" / "latest").symlink_to(path)
    monkeypatch.setenv("FXH_NIGHTLY_RUN", "--no-such-option")
    assert fxh("nightly", "--reports", str(tmp_path / "reports")) == 4
    assert {tuple(mail.rcpt_tos) for mail in inbox.mails} == {("devs@example.org", "list@example.org"), ("ops@example.org",)}
    assert inbox.logins == [(USER.encode(), PASSWORD.encode())] * 2
