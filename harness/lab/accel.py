# SPDX-License-Identifier: BSD-2-Clause
"""Choose QEMU's accelerator: run a tiny guest under KVM and cache the result in the store, a failure for a day.

On some machines ``/dev/kvm`` opens, but the guest hangs at 100 % CPU.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.config.runoptions import ACCELERATORS
from harness.errors import UsageError
from harness.lab import probed
from harness.lab.qemu import TCG_CPU, Qemu

# A boot sector: mov al,'K'; out 0xe9,al; out 0xf4,al; cli; hlt. The letter on QEMU's debug console proves that guest
# code ran. The write to isa-debug-exit ends QEMU.
_BOOT_SECTOR = b"\xb0\x4b\xe6\xe9\xe6\xf4\xfa\xf4".ljust(510, b"\0") + b"\x55\xaa"
# Seconds.
_TRIAL = 5.0


@dataclass(frozen=True)
class Accel:
    """``name`` is QEMU's accelerator; ``why`` is one line for the user."""

    name: str
    why: str

    @property
    def cpu(self) -> str:
        return "host" if self.name == "kvm" else TCG_CPU


def choose(qemu: Qemu, setting: str = "auto") -> Accel:
    """``setting`` is auto, kvm or tcg. Raises UsageError for another word."""
    if setting not in ACCELERATORS:
        raise UsageError(f"--accel {setting}: invalid value", hint=f"valid values: {', '.join(ACCELERATORS)}")
    if setting == "tcg":
        return Accel("tcg", "software emulation, as requested")
    if setting == "kvm":
        return Accel("kvm", "KVM, as requested")
    if not Path("/dev/kvm").exists():
        return Accel("tcg", "software emulation: there is no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accel("tcg", "software emulation: no permission to open /dev/kvm (is the user in group kvm?)")
    key = f"{qemu.label} on {platform.node()} {platform.release()}"
    return probed.cached("KVM", key, Accel, lambda found: found.name == "kvm", lambda: _probe(qemu))


def _probe(qemu: Qemu) -> Accel:
    with tempfile.TemporaryDirectory() as directory:
        sector = Path(directory) / "boot"
        sector.write_bytes(_BOOT_SECTOR.ljust(1440 * 1024, b"\0"))
        output = Path(directory) / "output"
        argv = [
            qemu.binary, "-accel", "kvm", "-cpu", "host", "-m", "16", "-nodefaults", "-display", "none", "-no-reboot",
            "-drive", f"file={sector},format=raw,if=floppy", "-boot", "a",
            "-chardev", f"file,id=d,path={output}", "-device", "isa-debugcon,iobase=0xe9,chardev=d",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
        ]  # fmt: skip
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(_TRIAL)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            _, errors = process.communicate()
        if output.exists() and b"K" in output.read_bytes():
            if not _nested():
                return Accel("tcg", "software emulation: KVM runs here, but without nested virtualisation Xen has no PVH or HVM")
            return Accel("kvm", "KVM: a tiny guest ran and nested virtualisation is on")
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["it ran no instruction within 5 s"]
        return Accel("tcg", f"software emulation: KVM exists, but a tiny guest failed under it ({last[0][:100]})")


def _nested() -> bool:
    """Whether Linux reports nested virtualisation in sysfs."""
    for module in ("kvm_amd", "kvm_intel"):
        path = Path(f"/sys/module/{module}/parameters/nested")
        if path.exists() and path.read_text().strip() in ("1", "Y", "y"):
            return True
    return False
