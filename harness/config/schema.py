# SPDX-License-Identifier: BSD-2-Clause
"""The tables of ``fxh.toml``: the fields of these dataclasses are their keys. Those of ``[run]`` are in harness.config.runoptions.

The metadata of a field is its check, or the function that reads its value (see harness.config.commands).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config import addresses, checks, commands, duration
from harness.config.commands import PowerCommands
from harness.config.runoptions import RunOptions

MAIL_SECURITY = ("auto", "tls", "starttls", "none")
STORAGE = r"file|(lvm|zvol):([A-Za-z0-9][A-Za-z0-9_.+/-]*)"
STORAGE_HINT = "use file, lvm:VOLUME-GROUP or zvol:DATASET"


def _key(default: Any, check: checks.Check) -> Any:
    return field(default=default, metadata={"check": check})


def _mailbox(what: str, *, local: bool = False) -> checks.Check:
    return checks.parsed_by(lambda text: addresses.mailboxes([text], what, local=local))


@dataclass(frozen=True)
class HostConfig:
    """``[hosts.NAME]``: a real Xen host. Empty settings come from ``~/.ssh/config`` or from the host itself."""

    address: str = field(metadata={"check": checks.parsed_by(addresses.host)})
    """``[user@]host[:port]``, an alias of ``~/.ssh/config``, ``local`` if this machine is the dom0, or ``labgrid:KEY=VALUE,...``."""
    name: str = ""
    key: str = _key("", checks.text)
    """Path of a private key."""
    jump: str = _key("", checks.parsed_by(addresses.jumps))
    """The jump hosts, by commas: ``[user@]host[:port]`` or aliases."""
    known_hosts: str = _key("", checks.text)
    bridge: str = _key(
        "xenbr0", checks.matching(r"[A-Za-z0-9][A-Za-z0-9._:-]*", "use the name of a bridge of the host, such as xenbr0")
    )
    storage: str = _key("file", checks.matching(STORAGE, STORAGE_HINT))
    """``file``, ``lvm:VOLUME-GROUP`` or ``zvol:DATASET``."""
    memory: int = _key(0, checks.between(0, checks.MOST_MEMORY))
    """MiB that guests may use; 0 for all memory without that of dom0 and of other domains."""
    vcpus: int = _key(0, checks.between(0, 100_000))
    """vCPUs that guests may use; 0 for four per CPU."""
    mac_prefix: str = _key("", checks.matching(r"[0-9A-Fa-f]{2}", "use two hexadecimal digits, such as 5a"))
    """The fourth byte of the MAC addresses of our guests, in hex; empty for one derived from the name of the host."""
    tags: tuple[str, ...] = _key((), checks.matching(r"[^\s,]+", "use words without blanks and commas"))
    power: PowerCommands | None = field(default=None, metadata={"read": commands.power})
    """The commands that switch its power, on this machine."""
    serial: tuple[str, ...] = field(default=(), metadata={"read": commands.serial})
    """Where its serial console is: a device, ``tcp:HOST:PORT``, ``unix:PATH``, or a command that prints it."""
    prepare: tuple[str, ...] = field(default=(), metadata={"read": commands.argv})
    """A command that installs or boots the Xen and the dom0 under test, before a night."""

    @property
    def label(self) -> str:
        """Its name, or its address if it has none."""
        return self.name or self.address


@dataclass(frozen=True)
class MailConfig:
    """``[mail]``: the mails of a nightly job. They are always written to files, and sent only if ``send`` is true."""

    send: bool = False
    sender: str = _key("", _mailbox("mail.sender"))
    to: tuple[str, ...] = _key((), _mailbox("mail.to"))
    infrastructure_to: tuple[str, ...] = _key((), _mailbox("mail.infrastructure_to", local=True))
    """The recipients if a step of the nightly job failed; empty for ``to``."""
    smtp: str = _key("localhost:25", checks.parsed_by(addresses.server))
    """``HOST`` or ``HOST:PORT``; the default port is 465 for ``security = "tls"``, else 25."""
    security: str = _key("auto", checks.one_of(*MAIL_SECURITY))
    """``tls`` (from the first byte on), ``starttls``, ``none``, or ``auto`` (see :func:`harness.mailer.server`)."""
    ca_file: str = _key("", checks.text)
    """A file of CA certificates (PEM) to verify the server with, instead of the system's."""
    user: str = _key("", checks.text)
    password_file: str = _key("", checks.text)


@dataclass(frozen=True)
class NightlyConfig:
    """``[nightly]``: the arguments of the command of each step. A step without arguments is omitted."""

    source: str = _key("", checks.text)
    """The FreeBSD source tree; ``{source}`` in the lists below."""
    update: tuple[str, ...] = _key((), checks.argument)
    """A whole command (``git``, ``-C``, ``{source}``, ``pull``, ``--ff-only``)."""
    build: tuple[str, ...] = _key((), checks.argument)
    """Arguments of `fxh image build`."""
    run: tuple[str, ...] = _key((), checks.argument)
    """Arguments of `fxh run`."""
    walk: str = _key("", checks.parsed_by(duration.seconds))
    """The duration of the random walk of the suite lifecycle, such as ``10m``, from a new seed each night; empty for none.

    Off by default until walks of FreeBSD guests are proven: a false failure would reach each night's mail."""
    report: tuple[str, ...] = _key(("--mail",), checks.argument)
    """Arguments of `fxh report`."""
    step_hours: float = _key(12.0, checks.positive(checks.YEAR // 3600))


@dataclass(frozen=True)
class LabgridConfig:
    """``[labgrid]``: where hosts with an address ``labgrid:...`` come from."""

    coordinator: str = _key("", checks.parsed_by(addresses.server))
    """``HOST:PORT`` of the coordinator; empty for ``LG_COORDINATOR``, else 127.0.0.1:20408."""


@dataclass(frozen=True)
class Config:
    """All tables of ``fxh.toml``; the hosts by name."""

    run: RunOptions = field(default_factory=RunOptions)
    hosts: Mapping[str, HostConfig] = field(default_factory=dict)
    mail: MailConfig = field(default_factory=MailConfig)
    nightly: NightlyConfig = field(default_factory=NightlyConfig)
    labgrid: LabgridConfig = field(default_factory=LabgridConfig)


SECTIONS: Mapping[str, type] = {
    "run": RunOptions,
    "mail": MailConfig,
    "nightly": NightlyConfig,
    "labgrid": LabgridConfig,
}
