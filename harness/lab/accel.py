# SPDX-License-Identifier: BSD-2-Clause
"""Whether KVM serves a lab here: found out by running a tiny guest, and remembered.

That ``/dev/kvm`` opens proves nothing: there are machines on which the guest then hangs at 100 % CPU for ever.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import paths, preparing
from harness.lab.qemu import TCG_CPU, Qemu

# A boot sector: mov al,'K'; out 0xe9,al; out 0xf4,al; cli; hlt - the letter on QEMU's debug console proves that guest
# code ran; the write to isa-debug-exit ends QEMU.
_BOOT_SECTOR = b"\xb0\x4b\xe6\xe9\xe6\xf4\xfa\xf4".ljust(510, b"\0") + b"\x55\xaa"
_PATIENCE = 5.0


@dataclass(frozen=True)
class Accel:
    """``name`` is QEMU's accelerator, ``why`` one line for people."""

    name: str
    why: str

    @property
    def cpu(self) -> str:
        return "host" if self.name == "kvm" else TCG_CPU


def choose(qemu: Qemu, wish: str = "auto") -> Accel:
    """``wish`` is auto, kvm or tcg."""
    if wish == "tcg":
        return Accel("tcg", "software emulation, as asked")
    if wish == "kvm":
        return Accel("kvm", "KVM, as asked")
    if not Path("/dev/kvm").exists():
        return Accel("tcg", "software emulation: there is no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accel("tcg", "software emulation: /dev/kvm is not ours to open (is the user in group kvm?)")
    memory = paths.store() / "accel.json"
    key = f"{qemu.label} on {platform.node()} {platform.release()}"
    try:
        known = json.loads(memory.read_text())
        if known["key"] == key:
            return Accel(**known["accel"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with preparing.step("a try of KVM"):
        found = _probe(qemu)
    memory.write_text(json.dumps({"key": key, "accel": asdict(found)}))
    return found


def _probe(qemu: Qemu) -> Accel:
    with tempfile.TemporaryDirectory() as directory:
        sector = Path(directory) / "boot"
        sector.write_bytes(_BOOT_SECTOR.ljust(1440 * 1024, b"\0"))
        said = Path(directory) / "said"
        argv = [
            qemu.binary, "-accel", "kvm", "-cpu", "host", "-m", "16", "-nodefaults", "-display", "none", "-no-reboot",
            "-drive", f"file={sector},format=raw,if=floppy", "-boot", "a",
            "-chardev", f"file,id=d,path={said}", "-device", "isa-debugcon,iobase=0xe9,chardev=d",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
        ]  # fmt: skip
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            _, words = process.communicate()
        if said.exists() and b"K" in said.read_bytes():
            if not _nested():
                return Accel("tcg", "software emulation: KVM runs here, but without nested virtualisation Xen has no PVH or HVM")
            return Accel("kvm", "KVM: a tiny guest ran and nested virtualisation is on")
        last = words.decode(errors="replace").strip().splitlines()[-1:] or ["it ran no instruction within 5 s"]
        return Accel("tcg", f"software emulation: KVM is here, but a tiny guest failed under it ({last[0][:100]})")


def _nested() -> bool:
    """Linux says so in sysfs; where nothing is said, believe no."""
    for module in ("kvm_amd", "kvm_intel"):
        path = Path(f"/sys/module/{module}/parameters/nested")
        if path.exists() and path.read_text().strip() in ("1", "Y", "y"):
            return True
    return False
