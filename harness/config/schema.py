# SPDX-License-Identifier: BSD-2-Clause
"""The tables of ``fxh.toml``: the fields of these dataclasses are their keys. Those of ``[run]`` are in harness.config.runoptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.config.commands import PowerCommands
from harness.config.runoptions import RunOptions


@dataclass(frozen=True)
class HostConfig:
    """``[hosts.NAME]``: a real Xen host. Empty settings come from ``~/.ssh/config`` or from the host itself."""

    address: str
    """``[user@]host[:port]``, an alias of ``~/.ssh/config``, ``local`` if this machine is the dom0, or ``labgrid:KEY=VALUE,...``."""
    name: str = ""
    key: str = ""
    """Path of a private key."""
    jump: str = ""
    """The jump hosts, by commas: ``[user@]host[:port]`` or aliases."""
    known_hosts: str = ""
    bridge: str = "xenbr0"
    storage: str = "file"
    """``file``, ``lvm:VOLUME-GROUP`` or ``zvol:DATASET``."""
    memory: int = 0
    """MiB that guests may use; 0 for all memory without that of dom0 and of other domains."""
    vcpus: int = 0
    """vCPUs that guests may use; 0 for four per CPU."""
    mac_prefix: str = ""
    """The fourth byte of the MAC addresses of our guests, in hex; empty for one derived from the name of the host."""
    tags: tuple[str, ...] = ()
    power: PowerCommands | None = None
    """The commands that switch its power, on this machine."""
    serial: tuple[str, ...] = ()
    """Where its serial console is: a device, ``tcp:HOST:PORT``, ``unix:PATH``, or a command that prints it."""
    prepare: tuple[str, ...] = ()
    """A command that installs or boots the Xen and the dom0 under test, before a night."""

    @property
    def label(self) -> str:
        """Its name, or its address if it has none."""
        return self.name or self.address


MAIL_SECURITY = ("auto", "tls", "starttls", "none")


@dataclass(frozen=True)
class MailConfig:
    """``[mail]``: the mails of a nightly job. They are always written to files, and sent only if ``send`` is true."""

    send: bool = False
    sender: str = ""
    to: tuple[str, ...] = ()
    infrastructure_to: tuple[str, ...] = ()
    """The recipients if a step of the nightly job failed; empty for ``to``."""
    smtp: str = "localhost:25"
    """``HOST`` or ``HOST:PORT``; the default port is 465 for ``security = "tls"``, else 25."""
    security: str = "auto"
    """``tls`` (from the first byte on), ``starttls``, ``none``, or ``auto`` (see :func:`harness.mailer.server`)."""
    ca_file: str = ""
    """A file of CA certificates (PEM) to verify the server with, instead of the system's."""
    user: str = ""
    password_file: str = ""


@dataclass(frozen=True)
class NightlyConfig:
    """``[nightly]``: the arguments of the command of each step. A step without arguments is omitted."""

    source: str = ""
    """The FreeBSD source tree; ``{source}`` in the lists below."""
    update: tuple[str, ...] = ()
    """A whole command (``git``, ``-C``, ``{source}``, ``pull``, ``--ff-only``)."""
    build: tuple[str, ...] = ()
    """Arguments of `fxh image build`."""
    run: tuple[str, ...] = ()
    """Arguments of `fxh run`."""
    walk: str = ""
    """The duration of the random walk of the suite lifecycle, such as ``10m``, from a new seed each night; empty for none.

    Off by default until walks of FreeBSD guests are proven: a false failure would reach each night's mail."""
    report: tuple[str, ...] = ("--mail",)
    """Arguments of `fxh report`."""
    step_hours: float = 12.0


@dataclass(frozen=True)
class LabgridConfig:
    """``[labgrid]``: where hosts with an address ``labgrid:...`` come from."""

    coordinator: str = ""
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
