# SPDX-License-Identifier: BSD-2-Clause
"""make planted SRC=TREE IMAGE=NAME: take bug fixes back out of a FreeBSD kernel, and print which of the old bugs the suites find.

Each reversal undoes one fix, or one piece of code that protects from a known bug, in a copy of the source tree. It counts as caught
if its case fails with the right words and a case of another suite passes. With the unchanged kernel all these cases must pass.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import score

from harness import paths
from harness.errors import HarnessError, UsageError
from harness.images import image, recipe, recipes, srctree, treescan

BLKFRONT = "sys/dev/xen/blkfront/blkfront.c"
CONTROL = "sys/dev/xen/control/control.c"
NETFRONT = "sys/dev/xen/netfront/netfront.c"
BALLOON = "sys/dev/xen/balloon/balloon.c"
INTR = "sys/dev/xen/bus/xen_intr.c"
TIMER = "sys/dev/xen/timer/xen_timer.c"
XENSTORE = "sys/dev/xen/xenstore/xenstore.c"
PVH = "sys/x86/xen/pv.c"
MP = "sys/x86/x86/mp_x86.c"

# The name of the last image. A run uses the keys of its images, so it needs no more names.
IMAGE = "reversal"

# Outcome and reason of each case (score.run).
Found = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Edit:
    """In the C function ``function`` of ``file`` (relative to the tree), replace the one match of the regex ``pattern``."""

    file: str
    function: str
    pattern: str
    instead: str


@dataclass(frozen=True)
class Reversal:
    """A fix to undo. ``what`` is the bug that returns, ``since`` the first release with the fix (or an older one than the harness
    can build), ``source`` its reference.

    ``case`` (``suite/function[parameters]``) must fail with a text that matches the regex ``words``. ``type`` is the guest type.
    """

    what: str
    since: str
    edits: tuple[Edit, ...]
    case: str
    words: str
    source: str
    type: str = "pvh"

    @property
    def other(self) -> str:
        """A quick case of another suite, which must pass despite the bug."""
        return score.OTHERS["balloon" if self.case.startswith("boot/") else "boot"]

    @property
    def places(self) -> str:
        return ", ".join(f"{edit.file}, {edit.function}()" for edit in self.edits)


TABLE = {
    "attach-size": Reversal(
        "the size of a disk counts `sectors` in units of the backend's sector, not of 512 bytes", "14.2",
        (Edit(BLKFRONT, "xbd_instance_create", r"sectors << XBD_SECTOR_SHFT", "sectors * sector_size"),),
        "root_mount/test_resize[4096]", "8 times as many", "FreeBSD bug 280884; xen 221f2748e8",
    ),
    "request-sector": Reversal(
        "a request counts in sectors of the disk, so block n is read from and written to n * 512", "14.2",
        (Edit(BLKFRONT, "xbd_bio_command", r"\((\(blkif_sector_t\)bp->bio_pblkno) \* [^;]*", r"\1"),),
        "root_mount/test_blocks_are_where_they_belong[4096]", r"block \d+ (?:reads|holds|cannot be written)", "FreeBSD bug 280884; xen 221f2748e8",
    ),
    "dump-sector": Reversal(
        "a dump counts in sectors of the disk, so it goes to an eighth of its offset", "14.2",
        (Edit(BLKFRONT, "xbd_dump", r"offset >> XBD_SECTOR_SHFT", "offset / dp->d_sectorsize"),),
        "boot/test_dump_reaches_the_disk[4096]", "there is no dump", "FreeBSD bug 280884; xen 221f2748e8",
    ),
    "extended-vdev": Reversal(
        "an extended vdev (xvdq and later) falls through to the names of the others", "9.0",
        (Edit(BLKFRONT, "xbd_vdevice_to_unit", r'(\*name = "xbd";)\n\t\treturn;', r"\1"),),
        "root_mount/test_every_vdev_in_one_boot", "should be xbd16: |no root file system: ufs:/dev/xbd0", "FreeBSD 8b8bfa3567",
    ),
    "no-capabilities": Reversal(
        "the guest does not write control/feature-* at boot", "15.0",
        (Edit(CONTROL, "xctrl_attach", r"notify_support\(\);", ""),),
        "lifecycle/test_capabilities_after_boot", r"control/(feature-poweroff) is", "xapi-project/xen-api PR 7047; notify_support()",
    ),
    "no-capabilities-restored": Reversal(
        "the guest does not write control/feature-* again after a restore", "15.0",
        (Edit(CONTROL, "xctrl_resume", r"notify_support\(\);", ""),),
        "lifecycle/test_saved_guest_states_its_capabilities", r"control/(feature-poweroff) is",
        "xapi-project/xen-api PR 7047; notify_support()",
    ),
    "poweroff-halts": Reversal(
        "only a PV guest tells Xen how it ended, so a PVH guest halts on poweroff and its domain stays", "14.1",
        (Edit(CONTROL, "xctrl_attach", r"EVENTHANDLER_REGISTER", r"if (xen_pv_domain()) \g<0>"),),
        "boot/test_control_shutdown[poweroff]", "its kernel has halted, and xl says", "FreeBSD 9e0b0f5de67f (D42343)",
    ),
    "panic-reboots": Reversal(
        "a panic is not reported to Xen as a crash", "14.1",
        (Edit(CONTROL, "xctrl_shutdown_final", r"KERNEL_PANICKED\(\)", "false"),),
        "boot/test_panic_is_seen_and_classified", "Xen got the shutdown reason .reboot", "FreeBSD 9e0b0f5de67f (D42343)",
    ),
    "event-channel-mask": Reversal(
        "on resume a closed event channel is masked, far outside of the mask", "15.0",
        (
            Edit(INTR, "xen_intr_disable_intr", r"is_valid_evtchn\(isrc->xi_port\)", "true"),
            Edit(INTR, "xen_intr_disable_source", r"is_valid_evtchn\(isrc->xi_port\)", "true"),
        ),
        "boot/test_saved_and_restored[1]",
        r"page fault while in kernel mode in xen_intr_disable_(?:source|intr)\(\)|restored by xl, it does not answer",
        "FreeBSD 4ece79968e70 (D43928)",
    ),
    "suspended-cpus": Reversal(
        "the other CPUs of a guest without ACPI have no place for their context when it is saved", "15.0",
        (Edit(MP, "cpususpend_handler", r"susppcbs == NULL", "false"),),
        "boot/test_saved_and_restored[2]", "page fault while in kernel mode in cpususpend_handler", "FreeBSD e7e2431586a4 (D43765)",
    ),
    "clock-after-restore": Reversal(
        "the clock is not set again after a restore", "10.0",
        (
            Edit(CONTROL, "xctrl_suspend", r"inittodr\(time_second\);", ""),
            Edit(TIMER, "xentimer_resume", r"inittodr\(time_second\);", ""),
        ),
        "boot/test_saved_and_restored[1]", r"the guest's clock is -\d+\.\d s off", "sys/dev/xen/control/control.c, xctrl_suspend()",
    ),
    "timers-after-restore": Reversal(
        "the timers of the CPUs are not started again after a restore", "10.0",
        (Edit(TIMER, "xentimer_resume", r"smp_rendezvous", r"if (false) \g<0>"),),
        "boot/test_saved_and_restored[2]", "restored by xl, it does not answer|no answer to", "sys/dev/xen/timer/xen_timer.c",
    ),
    "announcement": Reversal(
        "a restored guest does not announce its addresses", "15.0",
        (Edit(NETFRONT, "netfront_backend_changed", r"EVENTHANDLER_INVOKE\(iflladdr_event, sc->xn_ifp\);", ""),),
        "netfront/test_saved_guest_announces_itself", r"no announcement of \d+\.\d+\.\d+\.\d+ by",
        "sys/dev/xen/netfront/netfront.c, iflladdr_event",
    ),
    "page-boundary": Reversal(
        "a request for the network goes beyond the end of its page", "14.0",
        (Edit(NETFRONT, "create_netdev", r"1, PAGE_SIZE,([^;]*\n\s+)PAGE_SIZE,(\s+/\* maxsegsize)", r"1, 0,\1PAGE_SIZE * MAX_TX_REQ_FRAGS,\2"),),
        "netfront/test_frames_in_one_buffer", "does not reach dom0 any more", "xcp-ng/xcp issue 538; xn_txq_encap()",
    ),
    "offloads-after-restore": Reversal(
        "a restore switches all offloads on again", "11.0",
        (
            Edit(NETFRONT, "xn_configure_features", r"(?<=== if_getcapenable\(ifp\)\) \{\n)([^}]*)return \(0\);", r"\1"),
            Edit(NETFRONT, "xn_configure_features", r"cap_enabled = if_getcapenable", "cap_enabled = if_getcapabilities"),
        ),
        "netfront/test_saved_in_the_middle", "the offloads changed from .*'tso': False.* to .*'tso': True",
        "sys/dev/xen/netfront/netfront.c, xn_configure_features() (`Try to preserve as many options as possible`)",
    ),
    "cancelled-suspend": Reversal(
        "after a suspend that was cancelled, the interface connects to a backend that never left", "10.3",
        (Edit(NETFRONT, "netfront_resume", r"if \(xen_suspend_cancelled\)", "if (false)"),),
        "lifecycle/test_checkpointed[1]", "the file|the connection|the network|no answer to 'echo alive'", "FreeBSD-EN-17:05.xen",
    ),
    "pages-not-zeroed": Reversal(
        "pages that the balloon gives to Xen keep their content", "10.0",
        (Edit(BALLOON, "decrease_reservation", r"VM_ALLOC_ZERO", "0"),),
        "balloon/test_pages_are_given_back_empty", r"the secret is in \d+ of the", "sys/dev/xen/balloon/balloon.c (`Zero the page`)",
    ),
    "no-floor": Reversal(
        "the balloon follows any target, however small", "10.0",
        (Edit(BALLOON, "set_new_target", r"max\(target, minimum_target\(\)\)", "(minimum_target(), target)"),),
        "balloon/test_stops_at_its_floor", "the balloon is at .* MiB instead of|no answer|was killed", "sys/dev/xen/balloon/balloon.c, minimum_target()",
    ),
    "pages-lost": Reversal(
        "pages that the balloon gets back are not free", "10.0",
        (Edit(BALLOON, "increase_reservation", r"vm_page_free\(page\);", ""),),
        "balloon/test_keeps_no_page_that_it_gets", "are neither free, nor in a use that the kernel counts",
        "sys/dev/xen/balloon/balloon.c, increase_reservation()",
    ),
    "watches-after-restore": Reversal(
        "watches are not registered again after a restore", "10.0",
        (Edit(XENSTORE, "xs_resume", r"xs_watch\(watch->node, token\);", ""),),
        "balloon/test_saved_while_ballooned", "the balloon is at .* MiB instead of", "sys/dev/xen/xenstore/xenstore.c, xs_resume()",
    ),
    "nameless-backtrace": Reversal(
        "a kernel that Xen's own loader started has no symbols", "11.0",
        (Edit(PVH, "xen_pvh_parse_preload_data", r"xen_pvh_parse_symtab", r"if (false) \g<0>"),),
        "boot/test_panic_names_its_functions", r"kdb_sysctl_panic\(\) is not in the kernel's backtrace", "sys/x86/xen/pv.c, xen_pvh_parse_symtab()",
    ),
}  # fmt: skip


# -- the edit ---------------------------------------------------------------------------------------------------------


def edited(text: str, edit: Edit) -> str:
    """``text`` with the edit applied. Raises UsageError unless the function is there and the pattern matches once in it.

    style(9): a function's name is at the left margin of its definition, and so is the brace that ends it.
    """
    defined = re.compile(rf"^{edit.function}\([^;{{]*?\)\n\{{.*?^\}}$", re.MULTILINE | re.DOTALL)
    bodies = list(defined.finditer(text))
    if not bodies:
        raise UsageError(f"{edit.file}: no definition of {edit.function}()", hint="adapt the reversal to this tree")
    matches = [len(re.findall(edit.pattern, body[0])) for body in bodies]
    if sum(matches) != 1:
        raise UsageError(
            f"{edit.file}, {edit.function}(): {sum(matches)} matches of {edit.pattern!r} instead of one",
            hint="adapt the reversal to this tree",
        )
    body = bodies[matches.index(1)]
    return text[: body.start()] + re.sub(edit.pattern, edit.instead, body[0]) + text[body.end() :]


def with_edits(tree: Path, edits: Iterable[Edit], work: Callable[[], str]) -> str:
    """Return the result of ``work``, which runs with the edits in ``tree``. The files get their text back, with a new time."""
    before: dict[Path, str] = {}
    after: dict[Path, str] = {}
    for edit in edits:
        path = tree / edit.file
        if not path.is_file():
            raise UsageError(f"{edit.file}: not in {tree}", hint="adapt the reversal to this tree")
        before.setdefault(path, path.read_text())
        after[path] = edited(after.get(path, before[path]), edit)
    try:
        for path, text in after.items():
            path.write_text(text)
        return work()
    finally:
        for path, text in before.items():
            path.write_text(text)


def scratch_copy(source: Path, work: Path) -> Path:
    """A copy of the tree in ``work``, without version control; used again while the source has the same content.

    Files that an interrupted run left edited get the source's text.
    """
    copy, stamp = work / source.name, work / f"{source.name}.of"
    # Not the times of the files: after a new checkout the copy's objects, a build of ten minutes, stay valid.
    state = json.dumps(treescan.identity(treescan.scan(source), work / f"{source.name}.index"))
    if not stamp.is_file() or stamp.read_text() != state:
        stamp.unlink(missing_ok=True)
        if copy.exists():
            shutil.rmtree(copy)
        copy.mkdir(parents=True)
        kept = [str(path) for path in sorted(source.iterdir()) if path.name != ".git"]
        subprocess.run(
            ["cp", "-a", *(["--reflink=auto"] if sys.platform.startswith("linux") else []), *kept, str(copy)], check=True
        )
        stamp.write_text(state)
    for name in {edit.file for reversal in TABLE.values() for edit in reversal.edits}:
        if (source / name).is_file() and (source / name).read_bytes() != (copy / name).read_bytes():
            (copy / name).write_bytes((source / name).read_bytes())
    return copy


def fits(reversal: Reversal, version: str) -> bool:
    """Whether the release ``version`` has the fix."""
    return _number(reversal.since) <= _number(version)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


# -- the run ----------------------------------------------------------------------------------------------------------


def built(tree: Path, base: str, jobs: int) -> str:
    """Build the tree's kernel; return the key of ``base`` with it."""
    options = {"src": str(tree), "base": base, "jobs": jobs}
    return recipes.build(recipe.resolve(IMAGE, options, recipe.available())).entry.key


def judge(name: str, found: Found, seconds: float, *, alone: bool = True) -> tuple[bool, str]:
    """Whether a reversal was caught and, if it was ``alone`` in its kernel, the other case passed; and a line that says so."""
    reversal, absent = TABLE[name], {"outcome": "not run", "reason": ""}
    got, other = found.get(reversal.case, absent), found.get(reversal.other, absent)
    good = got["outcome"] == "failed" and re.search(reversal.words, got["reason"], re.DOTALL) is not None
    astray = alone and other["outcome"] not in ("passed", "known")
    first = " / ".join(line.strip() for line in got["reason"].splitlines() if line.strip())[:300]
    word = "MISSED" if not good else "ASTRAY" if astray else "caught"
    line = f"{word} {name:<24} {reversal.case:<50} {seconds:5.0f} s  {got['outcome']}: {first}"
    if not good:
        line += f"\n       taken back: {reversal.places}: {reversal.what} ({reversal.source})"
    return good and not astray, line + (
        f"\n       {reversal.other}: {other['outcome']}: {other['reason'][:150]!r}" if astray else ""
    )


def red_without(names: list[str], key: str, keep: Path | None) -> list[str]:
    """Run the cases of all reversals with the unchanged kernel; print and return a line for each that is not green or known."""
    lines = []
    for kind in sorted({TABLE[name].type for name in names}):
        chosen = [TABLE[name] for name in names if TABLE[name].type == kind]
        cases = sorted({case for reversal in chosen for case in (reversal.case, reversal.other)})
        found = score.run(cases, kind, guest=guest(key), keep=keep and keep / f"unchanged-{kind}")
        for case in cases:
            got = found.get(case, {"outcome": "not run", "reason": ""})
            if got["outcome"] not in ("passed", "known"):
                lines.append(f"       unchanged kernel: {case}: {got['outcome']}: {got['reason'][:200]!r}")
    print("\n".join([f"{len(lines)} of their cases fail with the unchanged kernel", *lines]), flush=True)
    return lines


def guest(key: str) -> list[str]:
    return ["--fxh-image", key, "--fxh-guest", "freebsd"]


def reverse(names: list[str], key: str, keep: Path | None) -> int:
    """Run the cases of the reversals in one kernel and print each judgment; return how many were caught. See :func:`judge`."""
    begun, alone = time.monotonic(), len(names) == 1
    cases = [case for name in names for case in (TABLE[name].case, *([TABLE[name].other] if alone else []))]
    found = score.run(cases, TABLE[names[0]].type, guest=guest(key), keep=keep and keep / "+".join(names))
    caught = 0
    for name in names:
        good, line = judge(name, found, time.monotonic() - begun, alone=alone)
        caught += good
        print(line, flush=True)
    return caught


def kernel_without(names: list[str], copy: Path, kernel: Callable[[], str]) -> str:
    """The key of an image whose kernel lacks these fixes. Prints each as missed and returns "" if it cannot be built."""
    try:
        return with_edits(copy, edits_of(names), kernel)
    except HarnessError as exc:
        print("\n".join(f"MISSED {name:<24} {exc}" for name in names), flush=True)
        return ""


def edits_of(names: list[str]) -> list[Edit]:
    return [edit for name in names for edit in TABLE[name].edits]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(TABLE)} (default: all whose fix the tree has)")
    parser.add_argument("--src", required=True, type=Path, help="a FreeBSD source tree, which stays unchanged")
    parser.add_argument("--image", required=True, help="an image with the world for the kernels")
    parser.add_argument("--work", type=Path, help="the directory for the copy of the tree (default: reversals in the store)")
    parser.add_argument("--keep", type=Path, help="keep the files of the runs in this directory")
    parser.add_argument("-j", "--jobs", type=int, default=0, help="run this many compilers in parallel")
    parser.add_argument("--trust", action="store_true", help="do not run the cases with the unchanged kernel first")
    parser.add_argument(
        "--together", action="store_true", help="take all fixes back in one kernel: faster, but a bug may hide or cause another"
    )
    options = parser.parse_args()
    score.end_on_signals()
    image.find(options.image)
    tree = srctree.find(options.src)
    if wrong := [name for name in options.names if name not in TABLE]:
        raise UsageError(f"no reversal {wrong[0]!r}", hint=f"one of {', '.join(TABLE)}")
    names = options.names or [name for name, reversal in TABLE.items() if fits(reversal, tree.version)]
    if left := len(TABLE) - len(names) if not options.names else 0:
        print(f"{left} fixes are newer than {tree.version} and are not taken back")
    copy = scratch_copy(tree.path, options.work or paths.store() / "reversals")
    kernel = functools.partial(built, copy, options.image, options.jobs)
    groups = [names] if options.together else [[name] for name in names]
    # The builds run in the main thread, which gets the signals: a build that one interrupts drops what it has not finished.
    with ThreadPoolExecutor(1) as pool:
        try:
            baseline = None if options.trust else pool.submit(red_without, names, kernel(), options.keep)
            runs = []
            for group in groups:
                if key := kernel_without(group, copy, kernel):
                    runs.append(pool.submit(reverse, group, key, options.keep))
            red = baseline.result() if baseline else []
            caught = sum(run.result() for run in runs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            score.end_running()
    print(f"{caught} of {len(names)} reversed fixes caught")
    return 0 if caught == len(names) and not red else 1


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        try:
            raise SystemExit(main())
        except HarnessError as exc:
            raise SystemExit(f"{exc.message}\nhint: {exc.hint}" if exc.hint else exc.message) from exc
