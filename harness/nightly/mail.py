# SPDX-License-Identifier: BSD-2-Clause
"""The mail about a night that failed itself: to whoever keeps the hosts, never to the product's developers."""

from __future__ import annotations

from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

from harness import mailer
from harness.config.schema import MailConfig
from harness.console.text import plain
from harness.nightly.night import Night, tail


def compose(night: Night, config: MailConfig, machine: str) -> EmailMessage:
    """What failed, with the end of its log; the subject says that it is no verdict."""
    failed = night.failed
    message = EmailMessage()
    message["Subject"] = f"[fxh infrastructure] night {night.name}: {', '.join(line.step for line in failed)} failed on {machine}"
    message["From"] = mailer.addresses([config.sender or f"fxh@{machine}"], "mail.sender", local=True)
    message["To"] = mailer.addresses(config.infrastructure_to or config.to or ("root",), "mail.infrastructure_to", local=True)
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=machine)
    message["Auto-Submitted"] = "auto-generated"
    text = ["The night itself failed; this says nothing about FreeBSD.", ""]
    for line in night.lines:
        text.append(f"  {line.step:<8} {line.status:<8} {line.seconds:>8.1f} s  {line.why}")
    for line in failed:
        text += ["", f"--- the end of {line.log}", plain(tail(Path(line.log)))]
    # Lines of a mail end at 998 bytes; 8bit keeps a log readable in the file, too.
    lines = [line[at : at + 240] for part in text for line in part.splitlines() or [""] for at in range(0, len(line) or 1, 240)]
    message.set_content("\n".join(lines) + "\n", cte="8bit")
    return message


def deliver(message: EmailMessage, config: MailConfig, path: Path) -> None:
    """Write it to ``path``; send it where the configuration says so. Raises InfrastructureError, UsageError."""
    path.write_bytes(bytes(message))
    if config.send:
        mailer.send(message, config, path)
