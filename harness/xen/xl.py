# SPDX-License-Identifier: BSD-2-Clause
"""Runs xl over a transport."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from harness.deadline import Deadline
from harness.errors import CommandFailed, InfrastructureError, UsageError
from harness.transport import Completed, Transport
from harness.xen import listing, pygrub, xenconsole
from harness.xen.config import Disk, DomainConfig, Vif
from harness.xen.event_wait import Pause, wait_on_output
from harness.xen.listing import DomainState, HostInfo
from harness.xen.toolstack import Console, ConsoleKind

# Seconds. Building a domain runs hotplug scripts, each of which takes seconds under emulation.
_CREATE = 120.0
_VERB = 60.0
# Seconds to read or write a guest's whole memory.
_WHOLE = 300.0

# xl reads a configuration from a regular file only. One round trip writes it and creates the domain. A lab that was restored from
# the checkpoint of another run does not have this run's directory yet.
_DIRECTORY = 'mkdir -p -m 700 "${1%/*}" && '
_CREATE_SCRIPT = 'umask 077 && cat > "$1" && xl create $2 "$1" && xl domid "$3"'
# In the old releases that got the fix for XSA-443 (4.15 to 4.17), xl has no bootloader_restrict, but libxl reads its environment.
_RESTRICTED = 'readable "$4" "$5" && export LIBXL_BOOTLOADER_RESTRICT=1 && '

# The limit of a file's size is in units of 512 bytes. A write beyond it fails with EFBIG, because the signal is ignored.
_LIMITED = 'trap "" XFSZ; ulimit -f "$1"; shift; exec "$@"'

# Prints the last line of the file, or an empty line, then new lines.
_FOLLOW = '[ -s "$1" ] || echo; exec tail -n 1 -F "$1"'
# xl prints the first of these after it has unpaused the domain (tools/xl/xl_vmcontrol.c, create_domain()).
_NEWS = rb"Waiting for domain|error"


class Xl:
    """The toolstack of every Xen host since 4.1. See :class:`harness.xen.toolstack.Toolstack` for the operations."""

    def __init__(self, transport: Transport, directory: str) -> None:
        """``directory`` in dom0 is for the configurations of the domains."""
        self._transport, self._directory = transport, directory

    def create(self, config: DomainConfig, deadline: Deadline | None = None, *, paused: bool = True) -> int:
        path = f"{self._directory}/{config.name}.cfg"
        script, own = _DIRECTORY + _CREATE_SCRIPT, []
        if ("bootloader_restrict", 1) in config.more and config.disks:
            first = config.disks[0]
            own = [first.target, f"{self._directory}/{config.name}.disk"]
            script = pygrub.READABLE + _DIRECTORY + _RESTRICTED + _CREATE_SCRIPT
            config = replace(config, disks=(replace(first, target=own[1]), *config.disks[1:]))
        argv = ["sh", "-c", script, "sh", path, "-p" if paused else "", config.name, *own]
        try:
            done = self._transport.run(argv, deadline or Deadline(_CREATE), stdin=config.render().encode())
        except CommandFailed as exc:
            words = exc.stderr.strip()
            if "out of memory" in words or "failed to free memory" in words or "xc_dom_boot_mem_init" in words:
                raise InfrastructureError(
                    f"{self._transport.name} has no {config.memory} MiB left for {config.name}: {listing.informative(words)}",
                    hint="destroy other domains (`xl list`), or give the host or the lab more memory",
                ) from exc
            raise CommandFailed(f"xl create {path}: {listing.informative(words)}", exc.status, exc.stdout, exc.stderr) from exc
        return int(done.text.split()[-1])

    def unpause(self, domain: str | int) -> None:
        self._xl("unpause", domain)

    def pause(self, domain: str | int) -> None:
        self._xl("pause", domain)

    def destroy(self, domain: str | int) -> None:
        self._xl("destroy", domain)

    def reboot(self, domain: str | int, *, force: bool = False) -> None:
        self._xl("reboot", *(["-F"] if force else []), domain)

    def shutdown(self, domain: str | int, *, force: bool = False) -> None:
        self._xl("shutdown", *(["-F"] if force else []), domain)

    def domains(self) -> tuple[DomainState, ...]:
        return listing.parse_list(self._xl("list").text)

    def find(self, domain: str | int) -> DomainState | None:
        return next((row for row in self.domains() if domain in (row.name, row.domid)), None)

    def mem_set(self, domain: str | int, mib: int) -> None:
        self._xl("mem-set", domain, f"{mib}m")

    def mem_max(self, domain: str | int, mib: int) -> None:
        self._xl("mem-max", domain, f"{mib}m")

    def vcpu_set(self, domain: str | int, count: int) -> None:
        self._xl("vcpu-set", "--ignore-host", domain, count)

    def info(self) -> HostInfo:
        return listing.parse_info(self._xl("info").text)

    def dmesg(self, *, clear: bool = False) -> str:
        return self._xl("dmesg", *(["-c"] if clear else [])).text

    def console(self, domain: str | int, *, kind: ConsoleKind = "pv", new: bool = True) -> Console:
        return xenconsole.attach(self._transport, domain, kind=kind, new=new)

    def dump_core(self, domain: str | int, path: str) -> None:
        self._xl("dump-core", domain, path, seconds=_WHOLE)

    def save(self, domain: str | int, path: str, *, stay: bool = False, limit: int = 0) -> None:
        argv = _argv("save", [*(["-c"] if stay else []), domain, path])
        limited = ["sh", "-c", _LIMITED, "sh", str(-(-limit // 512))] if limit else []
        self._transport.run([*limited, *argv], Deadline(_WHOLE))

    def restore(self, path: str, name: str) -> int:
        self._xl("restore", path, seconds=_WHOLE)
        return int(self._xl("domid", name).text)

    def migrate(self, domain: str | int, receiver: str) -> None:
        # Without the command of -s, xl runs the name of the host as the receiver's command (xl(1), migrate).
        self._transport.run(["xl", "migrate", "-s", "", str(domain), receiver], Deadline(_WHOLE))

    def block_attach(self, domain: str | int, disk: Disk) -> None:
        self._xl("block-attach", domain, disk.render())

    def block_detach(self, domain: str | int, vdev: str, *, force: bool = False) -> None:
        self._xl("block-detach", domain, vdev, *(["force"] if force else []))

    def network_attach(self, domain: str | int, vif: Vif) -> None:
        self._xl("network-attach", domain, *vif.render().split(","))

    def network_detach(self, domain: str | int, devid: int) -> None:
        self._xl("network-detach", domain, devid)

    def log(self, name: str) -> str:
        done = self._transport.run(["cat", _log(name)], check=False)
        return done.text if done.status == 0 else ""

    def follow_log(self, name: str, *, seconds: float) -> AbstractContextManager[Pause]:
        return wait_on_output(self._transport, ["sh", "-c", _FOLLOW, "sh", _log(name)], seconds=seconds, own=1, news=_NEWS)

    def _xl(self, verb: str, *words: str | int, seconds: float = _VERB) -> Completed:
        return self._transport.run(_argv(verb, words), Deadline(seconds))


def _log(name: str) -> str:
    return f"/var/log/xen/xl-{name}.log"


def _argv(verb: str, words: Sequence[str | int]) -> list[str]:
    argv = ["xl", verb, *map(str, words)]
    for word in argv[2:]:
        # xl reads a name that begins with a dash as an option.
        if word.startswith("-") and word not in ("-F", "-c", "--ignore-host"):
            raise UsageError(f"xl {verb}: {word!r} looks like an option")
    return argv
