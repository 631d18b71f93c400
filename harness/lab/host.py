# SPDX-License-Identifier: BSD-2-Clause
"""A lab as a host, with the interface of a real one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from harness import paths
from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.hosts.access import Access
from harness.hosts.debugger import Debugger
from harness.hosts.direct import DirectHost
from harness.hosts.host import HostFacts
from harness.images.debugfile import KernelSymbols
from harness.lab import ovmf, recipe
from harness.lab.checkpoint import Checkpoint, CheckpointKind
from harness.lab.lab import Lab
from harness.lab.qemu import Drive
from harness.lab.store import XEN_SYMBOLS
from harness.lab.suite_checkpoints import SuiteCheckpoints
from harness.transport import Completed, Stream
from harness.transport.local import SocketStream

log = logging.getLogger("fxh.lab")

# From this size in bytes on, a virtual disk brings a file into dom0 faster than ssh.
_WORTH_PLUGGING = 1 << 20
# QEMU walks page tables without the nested ones (target/i386/helper.c, x86_cpu_get_phys_page_attrs_debug()).
_COVERS = (
    "QEMU's CPUs, whatever runs on them: Xen, dom0 or a guest; breakpoints and steps; not the memory of PVH and HVM guests; "
    "gdb stops the whole lab"
)
# Bytes of Xen's log that are read.
_XEN_LOG = 1 << 20
# $1: the serial of a plugged disk. Prints the disk's path in dom0.
_FIND_DISK = """
for n in $(seq 1000); do
  for d in /sys/block/sd*; do
    if [ -f "$d/device/vpd_pg80" ] && [ "$(tr -cd 'a-z0-9' < "$d/device/vpd_pg80")" = "$1" ]; then echo "/dev/${d##*/}"; exit; fi
  done
  sleep 0.02
done
echo "no disk with the serial $1 appeared" >&2; exit 1
"""


class LabTransport:
    """The connection to a lab's dom0. It stays valid when the lab is restored in another machine."""

    near = "10.0.2.2"

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.name = lab.name

    def run(self, argv: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        return self._lab.ssh.run(argv, deadline, stdin=stdin, check=check)

    def open(self, argv: Sequence[str], *, pty: bool = False) -> Stream:
        return self._lab.ssh.open(argv, pty=pty)

    def connect(self, port: int) -> Stream:
        # Not through ssh: an emulated CPU encrypts 2 MB a second.
        return SocketStream(self._lab.machine.connect(port))

    def put(self, local: Path, remote: str, deadline: Deadline | None = None) -> None:
        self._lab.ssh.put(local, remote, deadline)

    def get(self, remote: str, local: Path, deadline: Deadline | None = None) -> None:
        self._lab.ssh.get(remote, local, deadline)

    def ping(self) -> None:
        self._lab.ssh.ping()

    def close(self) -> None:
        """Does nothing: the lab closes its own connection."""


class LabHost(DirectHost):
    """A running lab. Closing it ends the lab unless it is kept."""

    def __init__(self, lab: Lab, *, run_id: str = "") -> None:
        super().__init__(LabTransport(lab), run_id=run_id)
        self.lab = lab
        self._checkpoints = SuiteCheckpoints(self)
        self._plugged: dict[str, Drive] = {}

    @property
    def facts(self) -> HostFacts:
        info, lab = self.info, self.lab
        quirks = ("CR4.PAE is set on a new domain's vCPU 0 (QEMU defect, see docs/lab.md)",) if lab.spec.pae_first else ()
        note = f"{lab.qemu.label}, {lab.accel.why}"
        dom0 = f"Linux {info.kernel}"
        return HostFacts("qemu", "lab", info.xen_version, dom0, note, quirks, lab.spec.emulated, info.build_id)

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"checkpoint"}

    @property
    def no_uefi(self) -> str:
        """A lab always has the harness's own firmware."""
        return ""

    @cached_property
    def own_ovmf(self) -> Path:
        """The firmware from the store, built at first use. Raises BuildError."""
        return ovmf.obtain(recipe.firmware())

    def _ensure_lease(self) -> None:
        """A lab needs no lease: it ends with its owner."""

    def _upload(self, local: Path, remote: str) -> None:
        size = local.stat().st_size
        if size < _WORTH_PLUGGING:
            super()._upload(local, remote)
            return
        device = self.disk(local)
        try:
            script = 'head -c "$2" "$1" > "$3.part" && mv "$3.part" "$3" || { rm -f "$3.part"; exit 1; }'
            self.transport.run(["sh", "-c", script, "sh", device, str(size), remote], Deadline(300))
        finally:
            self.drop_disk(device)

    def disk(self, local: Path, fmt: str = "raw") -> str:
        if not local.is_file():
            raise UsageError(f"{local}: no such disk image", hint="give the path of an image file")
        self.make_directory()
        drive = self.lab.machine.plug(local, fmt)
        self.lab.record()
        try:
            device = self._device(drive)
        except InfrastructureError:
            with contextlib.suppress(InfrastructureError):
                self.lab.machine.unplug(drive)
            raise
        self._plugged[device] = drive
        return device

    def shared_disk(self, file: Path) -> str:
        self.make_directory()
        return self._device(self.lab.machine.share(file))

    def _device(self, drive: Drive) -> str:
        """The path of a disk in dom0, as soon as dom0 has it."""
        return self.transport.run(["sh", "-c", _FIND_DISK, "sh", drive.serial], Deadline(60)).text.strip()

    def drop_disk(self, target: str) -> None:
        drive = self._plugged.pop(target, None)
        if drive is None:  # it was plugged before the checkpoint was saved
            serial = self.transport.run(["sh", "-c", "tr -cd a-z0-9 < /sys/block/$1/device/vpd_pg80", "sh", Path(target).name]).text
            drive = next(d for d in self.lab.machine.drives if d.serial == serial)
        self.transport.run(["sh", "-c", 'blockdev --flushbufs "$1" 2>/dev/null; true', "sh", target])
        self.lab.machine.unplug(drive)
        self.lab.record()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def get_or_create(
        self,
        kind: CheckpointKind,
        key: str,
        build: Callable[[], str],
        *,
        exclusive: bool = True,
        private_memory: bool = False,
        what: str = "",
    ) -> Checkpoint:
        """As :meth:`harness.lab.checkpoints.LabCheckpoints.get_or_create`. Disks are plugged as they were at the save."""
        saved = self.lab.checkpoints.get_or_create(kind, key, build, exclusive=exclusive, private_memory=private_memory, what=what)
        self._forget_dom0()
        return saved

    def restore_idle(self, *, private_memory: bool = False) -> None:
        """Restore the idle dom0 in any case; :meth:`SuiteCheckpoints.reset` does it only if something changed."""
        self.lab.checkpoints.reset(private_memory=private_memory)
        self._forget_dom0()

    def _forget_dom0(self) -> None:
        self._prepared = False
        self._plugged = {}

    @property
    def checkpoints(self) -> SuiteCheckpoints:
        return self._checkpoints

    # -- state and end ------------------------------------------------------------------------------------------------

    @property
    def failure(self) -> str:
        return f"lab {self.lab.name}: {self.lab.dead}" if self.lab.dead else ""

    def describe_access(self) -> Access:
        name = self.lab.name
        return Access(f"fxh lab ssh {name}", f"--lab {name}", "/root", f"fxh lab rm {name}")

    def keep_for(self, domains: Sequence[str], seconds: float) -> tuple[str, ...]:
        if domains:
            self.lab.keep_for(seconds)
        return tuple(domains)

    @property
    def symbol_files(self) -> tuple[Path, ...]:
        return (self.lab.image.directory / XEN_SYMBOLS,)

    def _xen_symbols(self) -> tuple[Path, ...]:
        """The file with the symbols of the running hypervisor, if it is on this machine."""
        try:
            found = KernelSymbols(files=self.symbol_files, known=self.facts.build_id).debug
        except (InfrastructureError, OSError):  # dom0 does not answer
            found = None
        return (found,) if found is not None else ()

    def _stub_socket(self, domain: int) -> Path:
        """In the lab's own directory, which is removed with the lab."""
        return self.lab.sockets / f"guest-{domain}"

    @contextlib.contextmanager
    def debuggers(self, domain: int | None) -> Iterator[tuple[Debugger, ...]]:
        """The debuggers of any host, and QEMU's own stub."""
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(super().debuggers(domain))
            try:
                stub = stack.enter_context(self.lab.debugging())
                found += (Debugger("lab", _COVERS, str(stub.path), attached=stub.attached, more=self._xen_symbols()),)
            except InfrastructureError as exc:
                log.warning("%s", exc.message)
            yield found

    def hypervisor_log(self) -> str:
        """Read from Xen's serial port, which needs no process in dom0."""
        with contextlib.suppress(OSError):
            return paths.tail(self.lab.directory / "xen.log", _XEN_LOG).decode("utf-8", "replace")
        return ""

    @property
    def xenstore_log(self) -> str:
        """The recorder is part of the checkpoints, so its file is not in a run's directory."""
        return "/run/fxh/xenstore.log"

    def last_words(self, limit: int, *, answers: bool) -> dict[str, bytes]:
        with contextlib.suppress(OSError):
            return {"lab-serial.log": paths.tail(self.lab.directory / "xen.log", limit)}
        return {}

    def check(self) -> None:
        if self.lab.dead:
            raise InfrastructureError(self.lab.dead)
        super().check()

    def cleanup(self) -> None:
        """Does nothing: a lab is restored or removed as a whole."""

    def close(self) -> None:
        if self.lab.keep:
            self.lab.release()
        else:
            self.lab.remove()
