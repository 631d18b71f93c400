# SPDX-License-Identifier: BSD-2-Clause
"""The lab as a Xen host: over ssh like any other, but images are plugged in, and the whole of it can be put back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.hosts.host import DirectHost, HostFacts
from harness.lab import ovmf, recipe
from harness.lab.checkpoint import Checkpoint
from harness.lab.lab import Lab
from harness.lab.qemu import Drive
from harness.transport import Completed, Stream

# Over ssh a byte costs more than through a virtual disk from here on.
_WORTH_PLUGGING = 1 << 20
_PLUGGED = """
while :; do
  for d in /sys/block/sd*; do
    if [ -f "$d/device/vpd_pg80" ] && [ "$(tr -cd 'a-z0-9' < "$d/device/vpd_pg80")" = "$1" ]; then echo "/dev/${d##*/}"; exit; fi
  done
  sleep 0.02
done
"""


class LabTransport:
    """The way to a lab's dom0, whichever machine the lab runs in at the moment."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.name = lab.name

    def run(self, argv: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        return self._lab.ssh.run(argv, deadline, stdin=stdin, check=check)

    def open(self, argv: Sequence[str], *, pty: bool = False) -> Stream:
        return self._lab.ssh.open(argv, pty=pty)

    def forward(self, host: str, port: int) -> Stream:
        return self._lab.ssh.forward(host, port)

    def put(self, local: Path, remote: str, deadline: Deadline | None = None) -> None:
        self._lab.ssh.put(local, remote, deadline)

    def get(self, remote: str, local: Path, deadline: Deadline | None = None) -> None:
        self._lab.ssh.get(remote, local, deadline)

    def close(self) -> None:
        """The lab keeps its connection."""


class LabHost(DirectHost):
    """A lab that is up. Closing it ends the lab unless it is kept."""

    def __init__(self, lab: Lab, *, run_id: str = "") -> None:
        super().__init__(LabTransport(lab), run_id=run_id)
        self.lab = lab
        self._plugged: dict[str, Drive] = {}

    @property
    def facts(self) -> HostFacts:
        info, lab = self.info, self.lab
        quirks = ("CR4.PAE is set on a new domain's vCPU 0 (QEMU defect, see docs/lab.md)",) if lab.spec.pae_first else ()
        note = f"{lab.qemu.label}, {lab.accel.why}"
        return HostFacts("qemu", "lab", info.xen_version, f"Linux {info.kernel}", note, quirks, lab.spec.emulated)

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"checkpoint"}

    @property
    def no_uefi(self) -> str:
        """A lab always has a firmware: its own."""
        return ""

    @cached_property
    def own_ovmf(self) -> Path:
        """Built now where the store has none. Raises BuildError."""
        return ovmf.obtain(recipe.firmware())

    def _ensure_lease(self) -> None:
        """Nothing of a lab outlives its owner as it is."""

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
        self.prepare()
        drive = self.lab.machine.plug(local, fmt)
        self.lab.record()
        device = self.transport.run(["sh", "-c", _PLUGGED, "sh", drive.serial], Deadline(20)).text.strip()
        self._plugged[device] = drive
        return device

    def drop_disk(self, target: str) -> None:
        drive = self._plugged.pop(target, None)
        if drive is None:  # plugged in before a checkpoint was made
            serial = self.transport.run(["sh", "-c", "tr -cd a-z0-9 < /sys/block/$1/device/vpd_pg80", "sh", Path(target).name]).text
            drive = next(d for d in self.lab.machine.drives if d.serial == serial)
        self.transport.run(["sh", "-c", 'blockdev --flushbufs "$1" 2>/dev/null; true', "sh", target])
        self.lab.machine.unplug(drive)
        self.lab.record()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def restore_or_create(
        self, name: str, make: Callable[[], str], *, alone: bool = True, private_memory: bool = False, what: str = ""
    ) -> Checkpoint:
        """As :meth:`Lab.restore_or_create`; disks plugged in when the checkpoint was made are plugged in again."""
        made = self.lab.restore_or_create(name, make, alone=alone, private_memory=private_memory, what=what)
        self._forget()
        return made

    def rest(self, *, private_memory: bool = False) -> None:
        """Put the lab into the state "dom0 ready"."""
        self.lab.rest(private_memory=private_memory)
        self._forget()

    def _forget(self) -> None:
        self._prepared = False
        self._plugged = {}

    def check(self) -> None:
        if self.lab.dead:
            raise InfrastructureError(self.lab.dead)
        super().check()

    def cleanup(self) -> None:
        """A lab is thrown away or put back as a whole."""

    def close(self) -> None:
        if self.lab.keep:
            self.lab.release()
        else:
            self.lab.remove()


def key_of(*parts: str) -> str:
    """A short name for a checkpoint that depends on all of ``parts``."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
