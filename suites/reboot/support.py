# SPDX-License-Identifier: BSD-2-Clause
"""Helpers of the cases that replace a kernel and reboot."""

from __future__ import annotations

from collections.abc import Callable

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestDied
from harness.guests import files, replace_kernel
from harness.guests.guest import Guest
from harness.guests.os.values import BootVolume
from harness.guests.shape import ShapeArgs
from harness.oracles.mechanism import NEW, OLD, OTHER, RebootEvidence, mechanism
from harness.plugin.case_context import CaseContext

PYGRUB_RESTART: ShapeArgs = {"bootloader": "pygrub", "on_reboot": "restart", "on_crash": "restart"}
SOURCE = "xen tools/xl/xl_vmcontrol.c (restart), tools/libs/light/libxl_bootloader.c (run at each creation)"


class TwoKernels:
    """A guest that pygrub booted, with a second kernel on its boot volume next to the first one."""

    def __init__(self, guest: Guest, kinds: dict[str, str]) -> None:
        """``kinds`` maps the digest of a kernel file to ``new`` or ``old``."""
        self.guest = guest
        self.volume: BootVolume = replace_kernel.volume(guest)
        self._kinds = kinds

    def kind(self, digest: str) -> str:
        """Return ``new``, ``old`` or ``other`` for the digest of a kernel file; "" for ""."""
        return self._kinds.get(digest, OTHER)

    def judge_reboot(self, case: CaseContext, first: int, old: str, died: str) -> str:
        """Return the mechanism of a reboot (harness/oracles/mechanism.py), and keep it with the case.

        ``first`` and ``old`` are the domid and the kernel identity before the reboot, ``died`` the guest's death or "".
        """
        evidence = self._evidence(first, old, died)
        verdict = mechanism(evidence)
        (case.directory / "mechanism.txt").write_text(f"{verdict}\n{evidence}\n")
        return verdict

    def _evidence(self, first: int, old: str, died: str) -> RebootEvidence:
        guest, back, running, in_guest = self.guest, not died, "", ""
        if back:
            running = OLD if replace_kernel.identity(guest) == old else NEW
            in_guest = self.kind(files.digest(guest, replace_kernel.volume(guest).file))
        return RebootEvidence(
            came_back=back,
            bootloader_ran=replace_kernel.bootloader_ran(guest, first),
            running=running,
            in_guest=in_guest,
            extracted=self.kind(replace_kernel.extracted(guest, self.volume.what)) if running != NEW else "",
            died=died,
        )


def without_number(verdict: str) -> str:
    """Return the verdict of a reboot without the number of its mechanism: ``2: stale blocks`` becomes ``stale blocks``."""
    return verdict.partition(": ")[2]


def reboot_and_log_in(guest: Guest, start: Callable[[], None], seconds: float = 200) -> str:
    """Begin a reboot by ``start`` and log in to the next domain. Return "" or the reason why that failed."""
    guest.console_will_end()
    start()
    try:
        guest.follow_reboot(seconds)
        guest.wait_stage("login")
        guest.login()
    except DeadlineExpired as exc:
        return exc.message
    except GuestDied as exc:
        return exc.death.summary
    return ""


def wait_until_gone(guest: Guest, first: int, seconds: float) -> str:
    """Wait until the domain stays gone and return "gone"; return a description of it if it is restarted or stays.

    ``first`` is the domid before the reboot.
    """
    deadline = Deadline(seconds * guest.scale)
    gone_since: Deadline | None = None
    with guest.host.toolstack.follow_log(guest.name, seconds=deadline.remaining) as pause:
        while not deadline.expired:
            pause(3.0)
            row = guest.state()
            if row is None:
                gone_since = gone_since or Deadline(6)
                if gone_since.expired:
                    return "gone"
            else:
                gone_since = None
                if row.domid != first and len(guest.shutdowns()) > 2:
                    return f"restarted again and again (domid {row.domid})"
    row = guest.state()
    return "gone" if row is None else f"still there with domid {row.domid} ({row.state})"
