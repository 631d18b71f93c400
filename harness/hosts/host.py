# SPDX-License-Identifier: BSD-2-Clause
"""A Xen host: a dom0 reached over a transport, its toolstack, and the things a guest needs put there."""

from __future__ import annotations

import logging
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from harness import preparing
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.digest import known_sha256
from harness.errors import InfrastructureError, TransportError, UsageError
from harness.hosts import inventory, storage
from harness.hosts.lease import BASE, Lease, LeaseRequest
from harness.hosts.saved_state import Access, SavedStates
from harness.transport import Transport
from harness.xen import firmware, pygrub
from harness.xen.listing import HostInfo
from harness.xen.toolstack import Toolstack
from harness.xen.xenstore import Xenstore
from harness.xen.xl import Xl

log = logging.getLogger("fxh.hosts")

PREFIX = "fxh"
# MiB leased by who did not say how much.
_UNASKED = 1024
# One round trip, since each costs a fifth of a second under emulation. What is not used for long is removed by a keeper.
_SIZES = """
mkdir -p -m 700 "$1" "$2" || exit; shift 2
for f; do { touch -c "$f" && wc -c < "$f"; } 2>/dev/null || echo -1; done
"""
# As the keeper does it at the end for all domains of a run. Xl's log has the domids that the domain had.
_FORGET = r"""
cd /var/log/xen && for d in $(sed -n 's/^Waiting for domain .* (domid \([0-9]*\)).*/\1/p' "xl-$2.log"* 2>/dev/null); do rm -f "bootloader.$d.log"*; done
rm -f "xl-$2.log"* "console/guest-$2.log"* "qemu-dm-$2.log"*; rm -f "$1/$2.cfg" "$1/$2.disk"
"""
_PROBE = "grep -qaE 'log=(all|guest)' /proc/$(pidof xenconsoled)/cmdline 2>/dev/null && echo console-log\n"


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
    def directory(self) -> str:
        """Ours in dom0, for this run: it goes with the run, and nobody else's run is in it."""
        ...

    @property
    def toolstack(self) -> Toolstack: ...

    @property
    def xenstore(self) -> Xenstore: ...

    @property
    def facts(self) -> HostFacts: ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Of: pv, pv32, pvh, hvm, pvshim (a PV shim is installed), pygrub, pygrub-restrict, console-log (xenconsoled keeps
        every guest's), checkpoint, emulated (a lab without KVM).
        """
        ...

    @property
    def no_uefi(self) -> str:
        """Why its dom0 cannot start UEFI guests (no OVMF file there), or ""."""
        ...

    @property
    def own_ovmf(self) -> Path | None:
        """The OVMF file on this machine that UEFI guests there shall start from; None for the one that its libxl knows."""
        ...

    def domain_name(self, label: str) -> str:
        """A name for a new domain, which marks it as ours: ``fxh-<run>-<n>-<label>``."""
        ...

    def mac(self, domain: str, index: int) -> str:
        """A MAC for the domain's vif number ``index``, of Xen's own range, used by nobody else."""
        ...

    def prepare(self) -> None:
        """Make our directory there, and see to it that all of it goes when we are gone."""
        ...

    def files(self, *local: Path) -> tuple[str, ...]:
        """Put files (kernel, ramdisk) there, once for each content; returns their paths in dom0."""
        ...

    def disk(self, local: Path, fmt: str = "raw") -> str:
        """Make an image usable as a guest's disk, without changing it; returns the disk target in dom0."""
        ...

    def drop_disk(self, target: str) -> None:
        """Give back what :meth:`disk` returned; other targets are left alone."""
        ...

    def forget(self, domain: str) -> None:
        """Remove the logs and the configuration of a domain that is gone."""
        ...

    def inventory(self) -> inventory.Inventory: ...

    def check(self) -> None:
        """Whether the host itself is well. Raises InfrastructureError with what is not."""
        ...

    @property
    def states(self) -> SavedStates | None:
        """The saved states of a host that can be restored as a whole; None for a host on which each case cleans up."""
        ...

    @property
    def failure(self) -> str:
        """Why this host will never answer again, or ""."""
        ...

    def describe_access(self) -> Access: ...

    def keep_for(self, domains: Sequence[str], seconds: float) -> tuple[str, ...]:
        """Let ``domains`` outlive this process for ``seconds``. Returns the names of those that will.

        The host is no longer ours afterwards.
        """
        ...

    def evidence_files(self) -> dict[str, Path]:
        """Files on this machine that belong to the evidence of a failed case, each with the name that it gets there."""
        ...

    def cleanup(self) -> None:
        """Remove all that this run made there."""
        ...

    def close(self) -> None: ...


class DirectHost:
    """A host as it is: over ssh, or this machine itself. The lab builds on this."""

    bridge = "xenbr0"

    def __init__(
        self, transport: Transport, *, run_id: str = "", bridge: str = "", config: HostConfig | None = None, what: str = ""
    ) -> None:
        """``what`` tells others who look at the host's leases what this is for."""
        self._transport = transport
        self.run_id = run_id or secrets.token_hex(3)
        if not re.fullmatch(r"[a-z0-9]{1,16}", self.run_id):
            raise UsageError(f"run id {self.run_id!r}", hint="use lower-case letters and digits, 16 at most")
        self.config = config or HostConfig(transport.name)
        self.bridge = bridge or self.config.bridge
        self.what = what
        self.lease: Lease | None = None
        self._count = self._macs = 0
        self._prepared = False

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def directory(self) -> str:
        """Ours in dom0, for this run."""
        return f"{BASE}/run-{self.run_id}"

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
            raise InfrastructureError(f"{self.transport.name}: {exc}", hint="is this a Xen dom0, and are we root there?") from exc

    @property
    def facts(self) -> HostFacts:
        info = self.info
        os = "FreeBSD" if self.dom0 == "freebsd" else "Linux"
        return HostFacts("xl", self.config.name or self.transport.name, info.xen_version, f"{os} {info.kernel}")

    @property
    def dom0(self) -> str:
        """``linux`` or ``freebsd``, as ``xl info`` has it of uname."""
        return "freebsd" if dict(self.info.values).get("version", "").startswith("FreeBSD") else "linux"

    @cached_property
    def _storage(self) -> storage.Storage:
        return storage.choose(self.config.storage, self.directory, self.dom0)

    @property
    def capabilities(self) -> frozenset[str]:
        found = set(self.info.guest_types) | self._probed
        if "pvh" in found and self._shim:
            found.add("pvshim")
        if self.facts.emulated:
            found.add("emulated")
        return frozenset(found)

    @cached_property
    def _words(self) -> dict[str, str]:
        """What the probes printed in dom0: the first word of each line with the rest of it."""
        script = _PROBE + pygrub.PROBE + firmware.PROBE + "true"
        text = self.transport.run(["sh", "-c", script, "sh", self._series]).text
        return {word: rest for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word}

    @property
    def _series(self) -> str:
        """The host's Xen without its third number: ``4.20``."""
        return ".".join(self.facts.xen.split(".")[:2])

    @property
    def _probed(self) -> frozenset[str]:
        found = self._words.keys() & {"console-log", "pygrub"}
        return frozenset(found | {"pygrub-restrict"} if {"runas", "user"} <= self._words.keys() else found)

    @property
    def no_uefi(self) -> str:
        """Why its dom0 cannot start UEFI guests, or ""."""
        return firmware.missing(self._words)

    @property
    def own_ovmf(self) -> Path | None:
        """A real host brings its own firmware."""
        return None

    @cached_property
    def _shim(self) -> bool:
        """Whether libxl finds a PV shim there (LIBEXEC_LIB/boot of Xen's build, versioned by Debian)."""
        places = [f"{lib}/boot/xen-shim" for lib in (f"/usr/lib/xen-{self._series}", "/usr/lib/xen", "/usr/libexec/xen")]
        places += [f"/usr/local{place.removeprefix('/usr')}" for place in places[1:]]
        return self.transport.run(["ls", *places], check=False).stdout != b""

    def domain_name(self, label: str) -> str:
        self._count += 1
        return f"{PREFIX}-{self.run_id}-{self._count}-{re.sub(r'[^A-Za-z0-9.]+', '-', label)[:30].strip('-')}"

    def mac(self, domain: str, index: int) -> str:
        """From the lease's slot, which no other lease on this host has; without a lease from the domain's name."""
        if self.lease is None:
            low = sum(byte * 131**n for n, byte in enumerate(domain.encode())) + index
            return f"00:16:3e:{low >> 16 & 0x7F:02x}:{low >> 8 & 0xFF:02x}:{low & 0xFF:02x}"
        self._macs += 1
        host = self.config.mac_prefix or f"{zlib.crc32(self.facts.name.encode()) & 0xFF:02x}"
        return f"00:16:3e:{host}:{self.lease.slot:02x}:{self._macs & 0xFF:02x}"

    # -- putting things there -----------------------------------------------------------------------------------------

    def acquire(self, wish: LeaseRequest, deadline: Deadline) -> None:
        """Take a share of the host; all that we make there goes when the share does. Raises as :meth:`Lease.acquire`."""
        wish = replace(
            wish, run=self.run_id, what=wish.what or self.what, memory_limit=self.config.memory, vcpus_limit=self.config.vcpus
        )
        self.lease = Lease(self.transport, wish).acquire(deadline)

    def prepare(self) -> None:
        if not self._prepared:
            self._sizes()

    def _hold(self) -> None:
        if self.lease is None:
            self.acquire(LeaseRequest(self.run_id, memory=_UNASKED), Deadline(600))

    def _sizes(self, *remote: str) -> tuple[int, ...]:
        """How large each file is there, -1 without it; our directory is made in the same round trip where it is not yet."""
        self._hold()
        done = self.transport.run(["sh", "-c", _SIZES, "sh", self.directory, f"{BASE}/files", *remote])
        self._prepared = True
        return tuple(map(int, done.text.split()))

    def files(self, *local: Path) -> tuple[str, ...]:
        remote = tuple(f"{BASE}/files/{known_sha256(path)[:16]}-{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)}" for path in local)
        for path, target, size in zip(local, remote, self._sizes(*remote), strict=True):
            if size != path.stat().st_size:
                with preparing.step(f"upload of {path.name}"):
                    self._upload(path, target)
        return remote

    def _upload(self, local: Path, remote: str) -> None:
        # Another controller may be bringing the same file: each under a name of its own, the last wins.
        part = f"{self.directory}/{secrets.token_hex(3)}.part"
        self.transport.put(local, part)
        self.transport.run(["mv", part, remote])

    def disk(self, local: Path, fmt: str = "raw") -> str:
        if fmt != "raw":
            raise UsageError(f"{local}: a {fmt} image on a real host", hint="convert it: qemu-img convert -O raw")
        if not local.is_file():
            raise UsageError(f"{local}: no such disk image", hint="give the path of an image file")
        return self._storage.create(self.transport, self.files(local)[0], f"{PREFIX}-{self.run_id}-{secrets.token_hex(3)}")

    def drop_disk(self, target: str) -> None:
        self._storage.remove(self.transport, target)

    def forget(self, domain: str) -> None:
        """Remove what is in dom0 of a domain of ours that is gone: a long run makes thousands."""
        self.transport.run(["sh", "-c", _FORGET, "sh", self.directory, domain], check=False)

    # -- looking after ------------------------------------------------------------------------------------------------

    def inventory(self) -> inventory.Inventory:
        return inventory.parse(
            self.transport.run(["sh", "-c", inventory.SCRIPT], Deadline(30)).text, self.run_id if self.lease else ""
        )

    def check(self) -> None:
        if self.lease is not None and self.lease.lost:
            raise TransportError(self.lease.lost, hint="is the host up?")
        done = self.transport.run(
            [
                "sh",
                "-c",
                "xenstore-read /local/domain/0/name >/dev/null && { pidof xenconsoled || pgrep -x xenconsoled; } >/dev/null "
                "&& df -P /var | tail -n 1",
            ],
            Deadline(15),
            check=False,
        )
        if done.status:
            raise InfrastructureError(
                f"{self.transport.name}: xenstored or xenconsoled does not answer: {done.stderr.decode(errors='replace').strip()}",
                hint="restart Xen's daemons there, or the host",
            )
        used = done.text.split()[4].rstrip("%")
        if used.isdigit() and int(used) >= 99:
            raise InfrastructureError(f"{self.transport.name}: /var is full", hint="free some space there")

    @property
    def states(self) -> SavedStates | None:
        return None

    @property
    def failure(self) -> str:
        return ""

    def describe_access(self) -> Access:
        dom0 = "" if self.config.address == "local" else f"ssh {self.config.address}"
        return Access(dom0, f"--xen-host {self.config.name or self.config.address}", self.directory)

    def keep_for(self, domains: Sequence[str], seconds: float) -> tuple[str, ...]:
        return tuple(domain for domain in domains if self.lease is None or self.lease.keep(domain, seconds))

    def evidence_files(self) -> dict[str, Path]:
        return {}

    def cleanup(self) -> None:
        """Let the keeper do its work now; it is the same that is done when we are killed."""
        if self.lease is None:
            return
        lease, self.lease, self._prepared = self.lease, None, False
        left = lease.end()
        if left:
            raise InfrastructureError(
                f"{self.transport.name}: could not be removed there: {', '.join(left)}", hint="fxh clean HOST --yes, or look there"
            )

    def close(self) -> None:
        try:
            self.cleanup()
        except InfrastructureError as exc:
            log.warning("%s", exc.message)
        self.transport.close()
