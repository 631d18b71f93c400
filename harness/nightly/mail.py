# SPDX-License-Identifier: BSD-2-Clause
"""Mail about a failed nightly job. It goes to the operators of the hosts, never to the developers of the product."""

from __future__ import annotations

from email.message import EmailMessage
from pathlib import Path

from harness import mailer
from harness.config.schema import MailConfig
from harness.nightly.night import Night, tail
from harness.safetext import plain


def compose(night: Night, config: MailConfig, machine: str) -> EmailMessage:
    """A mail with the failed steps and the end of their logs. Its subject tells it from a verdict. Raises UsageError."""
    failed = night.failed
    text = ["The nightly job itself failed. This says nothing about FreeBSD.", ""]
    for result in night.results:
        text.append(f"  {result.step:<8} {result.status:<8} {result.seconds:>8.1f} s  {result.why}")
    for result in failed:
        text += ["", f"--- the end of {result.log}", plain(tail(Path(result.log)))]
    subject = f"nightly job {night.name}: {', '.join(result.step for result in failed)} failed on {machine}"
    return mailer.to_operators(subject, text, config, machine)
