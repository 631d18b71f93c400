"""A Xen host: a dom0 reached over a transport, its toolstack, and the things a guest needs put there."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.hosts import inventory
from harness.transport import Stream, Transport
from harness.xen.listing import HostInfo
from harness.xen.toolstack import Toolstack
from harness.xen.xenstore import Xenstore
from harness.xen.xl import Xl

log = logging.getLogger("fxh.hosts")

PREFIX = "fxh"
_BASE = "/var/lib/fxh"

# Waits for its owner's end (the channel closes, whatever killed him), then removes what is named as this run's.
_KEEPER = """
trap '' HUP INT TERM
while read -r _; do :; done
xl list | while read -r name rest; do case $name in "$1"-*) xl destroy "$name" ;; esac; done
losetup -a 2>/dev/null | while IFS=: read -r loop rest; do case $rest in *"$2"/*) losetup -d "$loop" ;; esac; done
rm -rf "$2"
"""


@dataclass(frozen=True)
class HostFacts:
    """What a report says of the host. ``backend`` is ``qemu`` (the lab) or ``xl`` (a real host)."""

    backend: str
    name: str
    xen: str
    dom0: str
    note: str = ""
    """How the lab is run, in one line."""
    quirks: tuple[str, ...] = ()
    """What the host does that a plain one does not."""
    emulated: bool = False
    """Its CPUs are software."""

    @property
    def label(self) -> str:
        """Short, for a cell: ``xen-4.20.5``."""
        return f"xen-{self.xen.partition('-')[0]}"


class XenHost(Protocol):
    """What the harness needs of a host. The lab and every real host look alike from here."""

    run_id: str
    bridge: str

    @property
    def transport(self) -> Transport: ...

    @property
    def toolstack(self) -> Toolstack: ...

    @property
    def xenstore(self) -> Xenstore: ...

    @property
    def facts(self) -> HostFacts: ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Of: pv, pv32, pvh, hvm, pvshim, pygrub, console-log (xenconsoled keeps every guest's), checkpoint."""
        ...

    def domain_name(self, label: str) -> str:
        """A name for a new domain, which marks it as ours: ``fxh-<run>-<n>-<label>``."""
        ...

    def file(self, local: Path) -> str:
        """Put a file (kernel, ramdisk) there, once for each content; returns its path in dom0."""
        ...

    def disk(self, local: Path, fmt: str = "raw") -> str:
        """Make an image usable as a guest's disk, without changing it; returns the disk target in dom0."""
        ...

    def drop_disk(self, target: str) -> None:
        """Give back what :meth:`disk` returned; other targets are left alone."""
        ...

    def inventory(self) -> inventory.Inventory: ...

    def check(self) -> None:
        """Whether the host itself is well. Raises InfrastructureError with what is not."""
        ...

    def cleanup(self) -> None:
        """Remove all that this run made there."""
        ...

    def close(self) -> None: ...


class DirectHost:
    """A host as it is: over ssh, or this machine itself. The lab builds on this."""

    bridge = "xenbr0"

    def __init__(self, transport: Transport, *, run_id: str = "", bridge: str = "") -> None:
        self._transport = transport
        self.run_id = run_id or secrets.token_hex(3)
        if not re.fullmatch(r"[a-z0-9]{1,16}", self.run_id):
            raise UsageError(f"run id {self.run_id!r}", mend="use lower-case letters and digits, 16 at most")
        if bridge:
            self.bridge = bridge
        self._count = 0
        self._keeper: Stream | None = None
        self._prepared = False
        self._loops: dict[str, str] = {}

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def directory(self) -> str:
        """Ours in dom0, for this run."""
        return f"{_BASE}/run-{self.run_id}"

    @cached_property
    def toolstack(self) -> Toolstack:
        return Xl(self.transport, self.directory)

    @cached_property
    def xenstore(self) -> Xenstore:
        return Xenstore(self.transport)

    @cached_property
    def info(self) -> HostInfo:
        """``xl info`` at first use. Raises InfrastructureError when xl does not answer there."""
        try:
            return self.toolstack.info()
        except ValueError as exc:
            raise InfrastructureError(f"{self.transport.name}: {exc}", mend="is this a Xen dom0, and are we root there?") from exc

    @property
    def facts(self) -> HostFacts:
        info = self.info
        return HostFacts("xl", self.transport.name, info.xen_version, f"Linux {info.kernel}")

    @property
    def capabilities(self) -> frozenset[str]:
        found = set(self.info.guest_types)
        if "pvh" in found:
            found.add("pvshim")
        if self._console_log:
            found.add("console-log")
        return frozenset(found | {"pygrub"})

    @cached_property
    def _console_log(self) -> bool:
        done = self.transport.run(["sh", "-c", "grep -aE 'log=(all|guest)' /proc/$(pidof xenconsoled)/cmdline"], check=False)
        return done.status == 0

    def domain_name(self, label: str) -> str:
        self._count += 1
        return f"{PREFIX}-{self.run_id}-{self._count}-{re.sub(r'[^A-Za-z0-9.]+', '-', label)[:30].strip('-')}"

    # -- putting things there -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make our directory there, and see to it that all of it goes when we are gone."""
        if self._prepared:
            return
        self.transport.run(["mkdir", "-p", "-m", "700", self.directory, f"{_BASE}/files"])
        self._hold()
        self._prepared = True

    def _hold(self) -> None:
        argv = ["sh", "-c", _KEEPER, "fxh-keeper", f"{PREFIX}-{self.run_id}", self.directory]
        self._keeper = self.transport.open(argv)

    def file(self, local: Path) -> str:
        try:
            with local.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            raise UsageError(f"{local}: {exc.strerror}", mend="give the path of a file that can be read") from exc
        self.prepare()
        remote = f"{_BASE}/files/{digest[:16]}-{re.sub(r'[^A-Za-z0-9._-]', '_', local.name)}"
        size = local.stat().st_size
        there = self.transport.run(["stat", "-c", "%s", remote], check=False)
        if there.status or there.text.strip() != str(size):
            self._upload(local, remote)
        return remote

    def _upload(self, local: Path, remote: str) -> None:
        self.transport.put(local, remote)

    def disk(self, local: Path, fmt: str = "raw") -> str:
        if fmt != "raw":
            raise UsageError(f"{local}: a {fmt} image on a real host", mend="convert it: qemu-img convert -O raw")
        if not local.is_file():
            raise UsageError(f"{local}: no such disk image", mend="give the path of an image file")
        self.prepare()
        remote = f"{self.directory}/{secrets.token_hex(3)}-{re.sub(r'[^A-Za-z0-9._-]', '_', local.name)}"
        self._upload(local, remote)
        loop = self.transport.run(["losetup", "--show", "-f", remote]).text.strip()
        self._loops[loop] = remote
        return loop

    def drop_disk(self, target: str) -> None:
        remote = self._loops.pop(target, None)
        if remote is None:  # a scratch disk: whoever made it takes it back
            return
        self.transport.run(["losetup", "-d", target])
        self.transport.run(["rm", "-f", remote])

    # -- looking after ------------------------------------------------------------------------------------------------

    def inventory(self) -> inventory.Inventory:
        return inventory.parse(self.transport.run(["sh", "-c", inventory.SCRIPT], Deadline(30)).text)

    def check(self) -> None:
        done = self.transport.run(
            [
                "sh",
                "-c",
                "xenstore-read /local/domain/0/name >/dev/null && pidof xenconsoled >/dev/null && df -P /var | tail -n 1",
            ],
            Deadline(15),
            check=False,
        )
        if done.status:
            raise InfrastructureError(
                f"{self.transport.name}: xenstored or xenconsoled does not answer: {done.stderr.decode(errors='replace').strip()}",
                mend="restart Xen's daemons there, or the host",
            )
        used = done.text.split()[4].rstrip("%")
        if used.isdigit() and int(used) >= 99:
            raise InfrastructureError(f"{self.transport.name}: /var is full", mend="free some space there")

    def cleanup(self) -> None:
        """Let the keeper do its work now; it is the same that is done when we are killed."""
        if self._keeper is None:
            return
        for row in self.toolstack.domains():
            if row.name.startswith(f"{PREFIX}-{self.run_id}-"):
                self.toolstack.destroy(row.domid)
        for target in list(self._loops):
            self.drop_disk(target)
        self.transport.run(["rm", "-rf", self.directory])

    def close(self) -> None:
        with contextlib.suppress(InfrastructureError):
            self.cleanup()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        self.transport.close()
