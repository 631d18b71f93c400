# SPDX-License-Identifier: BSD-2-Clause
"""The tables of ``fxh.toml``: the fields of these dataclasses are their keys. Those of ``[run]`` are in harness.config.runoptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.config.runoptions import RunOptions


@dataclass(frozen=True)
class HostConfig:
    """``[hosts.NAME]``: a real Xen host. Whatever is left empty comes from ``~/.ssh/config`` or from the host itself."""

    address: str
    """``[user@]host[:port]``, an alias of ``~/.ssh/config``, or ``local`` for a dom0 that is this machine."""
    name: str = ""
    key: str = ""
    """Path of a private key."""
    jump: str = ""
    """``[user@]host[:port]`` or aliases, by commas: the way there."""
    known_hosts: str = ""
    bridge: str = "xenbr0"
    storage: str = "file"
    """``file``, ``lvm:VOLUME-GROUP`` or ``zvol:DATASET``."""
    memory: int = 0
    """MiB that guests may take; 0 for all that the host has beside dom0 and foreign domains."""
    vcpus: int = 0
    """vCPUs that guests may have; 0 for four to a CPU."""
    mac_prefix: str = ""
    """Fourth byte of our MACs there, in hex; empty for one that follows from the host's name."""
    tags: tuple[str, ...] = ()


MAIL_SECURITY = ("auto", "tls", "starttls", "none")


@dataclass(frozen=True)
class MailConfig:
    """``[mail]``: who hears of a night. Nothing is sent unless ``send`` is true; mails are always written to files."""

    send: bool = False
    sender: str = ""
    to: tuple[str, ...] = ()
    infrastructure_to: tuple[str, ...] = ()
    """Who hears when the night itself failed; empty for ``to``."""
    smtp: str = "localhost:25"
    """``HOST`` or ``HOST:PORT``; without a port 465 for ``security = "tls"``, else 25."""
    security: str = "auto"
    """``tls`` (from the first byte on), ``starttls``, ``none``, or ``auto`` (see :func:`harness.mailer.server`)."""
    ca_file: str = ""
    """CA certificates (PEM) that the server's certificate is checked with, instead of the system's."""
    user: str = ""
    password_file: str = ""


@dataclass(frozen=True)
class NightlyConfig:
    """``[nightly]``: the arguments of each step's command; a step without any is left out."""

    source: str = ""
    """The FreeBSD source tree; ``{source}`` in the lists below."""
    update: tuple[str, ...] = ()
    """A whole command (``git``, ``-C``, ``{source}``, ``pull``, ``--ff-only``)."""
    build: tuple[str, ...] = ()
    """Arguments of `fxh image build`."""
    run: tuple[str, ...] = ()
    """Arguments of `fxh run`."""
    report: tuple[str, ...] = ("--mail",)
    """Arguments of `fxh report`."""
    step_hours: float = 12.0


@dataclass(frozen=True)
class ReleaseConfig:
    """``[release]``: a published FreeBSD that serves as a baseline."""

    version: str = ""
    mirror: str = ""


@dataclass(frozen=True)
class Config:
    """All of it. Hosts by name."""

    run: RunOptions = field(default_factory=RunOptions)
    hosts: Mapping[str, HostConfig] = field(default_factory=dict)
    mail: MailConfig = field(default_factory=MailConfig)
    nightly: NightlyConfig = field(default_factory=NightlyConfig)
    release: ReleaseConfig = field(default_factory=ReleaseConfig)


SECTIONS: Mapping[str, type] = {
    "run": RunOptions,
    "mail": MailConfig,
    "nightly": NightlyConfig,
    "release": ReleaseConfig,
}
