# SPDX-License-Identifier: BSD-2-Clause
"""Mail about a failed nightly job. It goes to the operators of the hosts, never to the developers of the product."""

from __future__ import annotations

from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

from harness import mailer
from harness.config.schema import MailConfig
from harness.nightly.night import Night, tail
from harness.safetext import plain


def compose(night: Night, config: MailConfig, machine: str) -> EmailMessage:
    """A mail with the failed steps and the end of their logs. Its subject tells it from a verdict. Raises UsageError."""
    failed = night.failed
    message = EmailMessage()
    message["Subject"] = (
        f"[fxh infrastructure] nightly job {night.name}: {', '.join(result.step for result in failed)} failed on {machine}"
    )
    message["From"] = mailer.addresses([config.sender or f"fxh@{machine}"], "mail.sender", local=True)
    message["To"] = mailer.addresses(config.infrastructure_to or config.to or ("root",), "mail.infrastructure_to", local=True)
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=machine)
    message["Auto-Submitted"] = "auto-generated"
    text = ["The nightly job itself failed. This says nothing about FreeBSD.", ""]
    for result in night.results:
        text.append(f"  {result.step:<8} {result.status:<8} {result.seconds:>8.1f} s  {result.why}")
    for result in failed:
        text += ["", f"--- the end of {result.log}", plain(tail(Path(result.log)))]
    # A line of a mail has at most 998 bytes. With 8bit, the log is also readable in the mail's file.
    lines = [line[at : at + 240] for part in text for line in part.splitlines() or [""] for at in range(0, len(line) or 1, 240)]
    message.set_content("\n".join(lines) + "\n", cte="8bit")
    return message


def deliver(message: EmailMessage, config: MailConfig, path: Path) -> None:
    """Write the mail to ``path``, and send it if ``mail.send`` is true. Raises InfrastructureError, UsageError."""
    path.write_bytes(bytes(message))
    if config.send:
        mailer.send(message, config, path)
