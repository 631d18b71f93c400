# SPDX-License-Identifier: BSD-2-Clause
"""A host that the harness reaches by ssh, or this machine: leases, files, disks and cleanup in its dom0."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from harness import paths, preparing
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.digest import known_sha256
from harness.dom0 import xenstore_recorder
from harness.errors import CannotRun, CommandFailed, DeadlineExpired, InfrastructureError, TransportError, UsageError
from harness.hosts import guest_stub, inventory, storage
from harness.hosts.access import Access
from harness.hosts.checkpoints import HostCheckpoints
from harness.hosts.debugger import Debugger, gdbsx_stub
from harness.hosts.health_check import HealthCheck
from harness.hosts.host import HostFacts
from harness.hosts.lease import BASE, SILENCE, Lease, LeaseRequest
from harness.hosts.serial import SerialLog
from harness.transport import Transport
from harness.xen import dom0_program, firmware, pygrub
from harness.xen.listing import HostInfo
from harness.xen.toolstack import Toolstack
from harness.xen.xenstore import Xenstore
from harness.xen.xl import Xl

log = logging.getLogger("fxh.hosts")

PREFIX = "fxh"
_CHECK = """
xenstore-read /local/domain/0/name >/dev/null && { pidof xenconsoled || pgrep -x xenconsoled; } >/dev/null && df -P /var | tail -n 1
"""
# MiB of a lease if the caller asked for none.
_DEFAULT_MEMORY = 1024
# One round trip, because each takes 0.2 s under emulation. touch marks a file as used: lease agents remove unused ones.
_SIZES = """
mkdir -p -m 700 "$1" "$2" || exit; shift 2
for f; do { touch -c "$f" && wc -c < "$f"; } 2>/dev/null || echo -1; done
"""
# The lease agent does the same for all domains of a run. xl's log contains the domids that the domain had.
_FORGET = r"""
cd /var/log/xen && for d in $(sed -n 's/^Waiting for domain .* (domid \([0-9]*\)).*/\1/p' "xl-$2.log"* 2>/dev/null); do rm -f "bootloader.$d.log"*; done
rm -f "xl-$2.log"* "console/guest-$2.log"* "qemu-dm-$2.log"*; rm -f "$1/$2.cfg" "$1/$2.disk"
"""
_PROBE = "grep -qaE 'log=(all|guest)' /proc/$(pidof xenconsoled)/cmdline 2>/dev/null && echo console-log\n"


class DirectHost:
    """A host that is reached over ssh, or this machine. A lab extends it."""

    bridge = "xenbr0"

    def __init__(
        self, transport: Transport, *, run_id: str = "", bridge: str = "", config: HostConfig | None = None, what: str = ""
    ) -> None:
        """``what`` is the purpose of the lease, which ``fxh hosts`` shows. Raises UsageError for an invalid ``run_id``."""
        self._transport = transport
        self.run_id = run_id or secrets.token_hex(3)
        if not re.fullmatch(r"[a-z0-9]{1,16}", self.run_id):
            raise UsageError(f"run id {self.run_id!r}", hint="use lower-case letters and digits, 16 at most")
        self.config = config or HostConfig(transport.name)
        self.bridge = bridge or self.config.bridge
        self.what = what
        self.lease: Lease | None = None
        self.serial: SerialLog | None = None
        """Its serial console, if this process or another one reads it."""
        self._health: HealthCheck | None = None
        self._log_before = ""
        self._count = self._macs = 0
        self._prepared = self._recording = False

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def directory(self) -> str:
        return f"{BASE}/run-{self.run_id}"

    @cached_property
    def toolstack(self) -> Toolstack:
        return Xl(self.transport, self.directory)

    @cached_property
    def xenstore(self) -> Xenstore:
        return Xenstore(self.transport)

    @cached_property
    def info(self) -> HostInfo:
        """The output of ``xl info``, requested once. Raises InfrastructureError if it cannot be parsed."""
        try:
            return self.toolstack.info()
        except ValueError as exc:
            raise InfrastructureError(
                f"{self.transport.name}: {exc}", hint="check that the host is a Xen dom0 and that the login is root"
            ) from exc

    @property
    def facts(self) -> HostFacts:
        info = self.info
        system = "FreeBSD" if self.dom0 == "freebsd" else "Linux"
        name = self.config.name or self.transport.name
        # "Mon Jul 27 09:00:00 2026 +0200 git:0123456789-dirty", and "#1 SMP PREEMPT_DYNAMIC Debian 6.1.99-1 (2026-07-01)"
        values = dict(info.values)
        changeset = values.get("xen_changeset", "").rpartition(" ")[2]
        builds = {"xen build": f"{changeset} {info.build_id}".strip(), "dom0 build": values.get("version", "")}
        told = tuple((key, value) for key, value in builds.items() if value)
        return HostFacts("xl", name, info.xen_version, f"{system} {info.kernel}", build_id=info.build_id, builds=told)

    @property
    def dom0(self) -> str:
        """``linux`` or ``freebsd``, from the uname data of ``xl info``."""
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
    def _probe(self) -> dict[str, str]:
        """The output of the probes in dom0: the rest of each line by its first word."""
        script = _PROBE + pygrub.PROBE + firmware.PROBE + "true"
        text = self.transport.run(["sh", "-c", script, "sh", self._series]).text
        return {word: rest for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word}

    @property
    def _series(self) -> str:
        """Major and minor version of Xen: ``4.20``."""
        return ".".join(self.facts.xen.split(".")[:2])

    @property
    def _probed(self) -> frozenset[str]:
        found = self._probe.keys() & {"console-log", "pygrub"}
        return frozenset(found | {"pygrub-restrict"} if {"runas", "user"} <= self._probe.keys() else found)

    @property
    def no_uefi(self) -> str:
        return firmware.missing(self._probe)

    @property
    def own_ovmf(self) -> Path | None:
        """None: a real host has its own firmware."""
        return None

    @cached_property
    def _shim(self) -> bool:
        """Whether libxl finds a PV shim in LIBEXEC_LIB/boot of Xen's build. Debian adds the version to this path."""
        places = [f"{lib}/boot/xen-shim" for lib in (f"/usr/lib/xen-{self._series}", "/usr/lib/xen", "/usr/libexec/xen")]
        places += [f"/usr/local{place.removeprefix('/usr')}" for place in places[1:]]
        return self.transport.run(["ls", *places], check=False).stdout != b""

    @property
    def slot(self) -> int:
        return 0 if self.lease is None else max(0, self.lease.slot)

    def domain_name(self, label: str) -> str:
        self._count += 1
        return f"{PREFIX}-{self.run_id}-{self._count}-{re.sub(r'[^A-Za-z0-9.]+', '-', label)[:30].strip('-')}"

    def mac(self, domain: str, index: int) -> str:
        """Built from the lease's slot, which is unique on this host; without a lease from the domain's name."""
        if self.lease is None:
            low = sum(byte * 131**n for n, byte in enumerate(domain.encode())) + index
            return f"00:16:3e:{low >> 16 & 0x7F:02x}:{low >> 8 & 0xFF:02x}:{low & 0xFF:02x}"
        self._macs += 1
        host = self.config.mac_prefix or f"{zlib.crc32(self.facts.name.encode()) & 0xFF:02x}"
        return f"00:16:3e:{host}:{self.lease.slot:02x}:{self._macs & 0xFF:02x}"

    # -- lease, files and disks ---------------------------------------------------------------------------------------

    def acquire(self, request: LeaseRequest, deadline: Deadline) -> None:
        """Lease a share of the host. The end of the lease removes the resources of the run. Raises as :meth:`Lease.acquire`."""
        request = replace(
            request, run=self.run_id, what=request.what or self.what, memory_limit=self.config.memory, vcpus_limit=self.config.vcpus
        )
        self.lease = Lease(self.transport, request).acquire(deadline)
        self._health = HealthCheck(self.transport, self.serial)

    def make_directory(self) -> str:
        if not self._prepared:
            self._remote_sizes()
        return self.directory

    def _ensure_lease(self) -> None:
        if self.lease is None:
            self.acquire(LeaseRequest(self.run_id, memory=_DEFAULT_MEMORY), Deadline(600))

    def _remote_sizes(self, *remote: str) -> tuple[int, ...]:
        """The size of each file in dom0 in bytes, or -1 if it is missing. Also creates the run's directory, in the same round trip."""
        self._ensure_lease()
        done = self.transport.run(["sh", "-c", _SIZES, "sh", self.directory, f"{BASE}/files", *remote])
        self._prepared = True
        if self.lease is not None and not self._recording:
            self._recording = True
            self.record_xenstore(f"{PREFIX}-{self.run_id}-")
        return tuple(map(int, done.text.split()))

    def files(self, *local: Path) -> tuple[str, ...]:
        remote = tuple(f"{BASE}/files/{known_sha256(path)[:16]}-{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)}" for path in local)
        for path, target, size in zip(local, remote, self._remote_sizes(*remote), strict=True):
            if size != path.stat().st_size:
                with preparing.step(f"upload of {path.name}"):
                    self._upload(path, target)
        return remote

    def _upload(self, local: Path, remote: str) -> None:
        # Another controller may upload the same file: use a unique name and rename it. The last one wins.
        part = f"{self.directory}/{secrets.token_hex(3)}.part"
        self.transport.put(local, part)
        # A file under its final name must survive a loss of power: later runs know it by its name and size alone.
        self.transport.run(["sh", "-c", 'sync && mv "$1" "$2"', "sh", part, remote])

    def disk(self, local: Path, fmt: str = "raw") -> str:
        if fmt != "raw":
            raise UsageError(f"{local}: a real host needs a raw image, not {fmt}", hint="convert it: qemu-img convert -O raw")
        if not local.is_file():
            raise UsageError(f"{local}: no such disk image", hint="give the path of an image file")
        return self._storage.create(self.transport, self.files(local)[0], f"{PREFIX}-{self.run_id}-{secrets.token_hex(3)}")

    def shared_disk(self, file: Path) -> str:
        raise CannotRun("needs storage that two hosts share, and only labs have some", hint="fxh run, without --xen-host")

    def drop_disk(self, target: str) -> None:
        self._storage.remove(self.transport, target)

    def forget(self, domain: str) -> None:
        """Remove the logs and the configuration of a domain: a long run creates thousands of domains."""
        self.transport.run(["sh", "-c", _FORGET, "sh", self.directory, domain], check=False)

    # -- health and cleanup -------------------------------------------------------------------------------------------

    def inventory(self) -> inventory.Inventory:
        return inventory.parse(
            self.transport.run(["sh", "-c", inventory.SCRIPT], Deadline(30)).text, self.run_id if self.lease else ""
        )

    def hypervisor_log(self) -> str:
        self._log_before = self.toolstack.dmesg()
        return self._log_before

    @property
    def xenstore_log(self) -> str:
        return f"{self.directory}/xenstore.log"

    def record_xenstore(self, prefix: str) -> None:
        """Record the changes in xenstore of domains whose names begin with ``prefix``. Without the record only evidence is missing."""
        try:
            dom0_program.run(self.transport, xenstore_recorder, self.xenstore_log, prefix)
        except CommandFailed as exc:
            why = (exc.stderr.strip().splitlines() or [exc.message])[-1]
            log.warning("%s: no record of xenstore: %s", self.transport.name, why)

    def check(self) -> None:
        if self._health is not None and self._health.lost:
            raise TransportError(self._health.lost, hint="look at its console")
        if self.lease is not None and self.lease.lost:
            raise TransportError(self.lease.lost, hint="check that the host is up")
        try:
            done = self.transport.run(["sh", "-c", _CHECK], Deadline(15), check=False)
        except DeadlineExpired as exc:
            if self._health is not None and self._health.silent > SILENCE:
                raise TransportError(
                    f"{exc.message}; no heartbeat for {self._health.silent:.0f} s", hint="look at its console"
                ) from exc
            raise  # a loaded host
        if done.status:
            raise InfrastructureError(
                f"{self.transport.name}: xenstored or xenconsoled does not answer: {done.stderr.decode(errors='replace').strip()}",
                hint="restart Xen's daemons or the host",
            )
        used = done.text.split()[4].rstrip("%")
        if used.isdigit() and int(used) >= 99:
            raise InfrastructureError(f"{self.transport.name}: /var is full", hint="free some space on the host")

    @property
    def checkpoints(self) -> HostCheckpoints | None:
        return None

    @property
    def failure(self) -> str:
        return ""

    def describe_access(self) -> Access:
        dom0 = "" if self.config.address == "local" else f"ssh {self.config.address}"
        return Access(dom0, f"--xen-host {self.config.label}", self.directory)

    def keep_for(self, domains: Sequence[str], seconds: float) -> tuple[str, ...]:
        return tuple(domain for domain in domains if self.lease is None or self.lease.keep_domain(domain, seconds))

    @property
    def symbol_files(self) -> tuple[Path, ...]:
        return ()

    def _stub_socket(self, domain: int) -> Path:
        """The socket of the gdb stub for a domain."""
        guest_stub.sweep(paths.runtime())
        return paths.runtime() / guest_stub.socket_name(self.run_id, domain)

    @contextlib.contextmanager
    def debuggers(self, domain: int | None) -> Iterator[tuple[Debugger, ...]]:
        with contextlib.ExitStack() as stack:
            found: tuple[Debugger, ...] = ()
            if domain is not None:
                try:
                    found += (stack.enter_context(guest_stub.serve(self.transport, domain, self._stub_socket(domain))),)
                    found += gdbsx_stub(self.transport, domain, self.config.address)
                except InfrastructureError as exc:
                    log.warning("%s", exc.message)
            yield found

    def last_words(self, limit: int, *, answers: bool) -> dict[str, bytes]:
        serial = self._health.serial_output(limit) if self._health is not None else b""
        return {"host-serial.log": serial, "xl-dmesg-before.log": b"" if answers else self._log_before.encode()}

    def cleanup(self) -> None:
        """End the lease. The lease agent removes the same resources if this process is killed."""
        if self.lease is None:
            return
        lease, self.lease, self._prepared, self._recording = self.lease, None, False, False
        if self._health is not None:
            self._health.stop()
        left = lease.end()
        if left:
            raise InfrastructureError(
                f"{self.transport.name}: could not be removed: {', '.join(left)}",
                hint="run fxh clean HOST --yes, or remove them by hand",
            )

    def close(self) -> None:
        try:
            self.cleanup()
        except InfrastructureError as exc:
            log.warning("%s", exc.message)
        self.transport.close()
