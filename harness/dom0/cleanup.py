# SPDX-License-Identifier: BSD-2-Clause
"""Runs in dom0, as part of the keeper: what there is of a run on this host, and its removal."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess

NAME = re.compile(r"fxh-([a-z0-9]{1,16})-\d+-")


def output(*argv: str) -> str:
    """What a tool prints, or "" where it fails or is not there."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def domains() -> list[tuple[str, int, int, int]]:
    """(name, domid, MiB, vCPUs) of all domains."""
    found = []
    for line in output("xl", "list").splitlines():
        match = re.match(r"(\S*)\s+(\d+)\s+(\d+)\s+(\d+)\s+[-rbpscdwS?]{6}\s", line)
        if match:
            found.append((match.group(1), int(match.group(2)), int(match.group(3)), int(match.group(4))))
    return found


def loops(directory: str) -> list[str]:
    """Loop devices whose file lies in ``directory``."""
    found = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(path) as file:
                if file.read().startswith(directory + "/"):
                    found.append("/dev/" + path.split("/")[3])
        except OSError:
            continue
    return found


def watchers(directory: str, kept: tuple[str, ...]) -> list[int]:
    """xl's processes that wait for the end of domains configured in ``directory``, but for those called ``kept``.

    They build a domain anew where its on_* says so, two seconds after its end: until then none is listed (xl_vmcontrol.c).
    """
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        theirs = {os.path.basename(word)[: -len(".cfg")] for word in words if word.startswith(directory + "/")}
        if os.path.basename(words[0]) == "xl" and theirs - set(kept):
            found.append(int(path.split("/")[2]))
    return found


def volumes(run: str) -> list[tuple[str, ...]]:
    """Commands that remove the run's logical volumes and zvols."""
    found: list[tuple[str, ...]] = []
    for line in output("lvs", "--noheadings", "-o", "vg_name,lv_name").splitlines():
        words = line.split()
        if len(words) == 2 and words[1].startswith("fxh-%s-" % run):
            found.append(("lvremove", "-f", words[0] + "/" + words[1]))
    for name in output("zfs", "list", "-H", "-t", "volume", "-o", "name").split("\n"):
        if name.rpartition("/")[2].startswith("fxh-%s-" % run):
            found.append(("zfs", "destroy", name))
    return found


def belongings(base: str, run: str) -> list[str]:
    """What there is of a run, in words: what :func:`remove` would remove."""
    directory = "%s/run-%s" % (base, run)
    found = ["domain %s" % row[0] for row in domains() if row[0].startswith("fxh-%s-" % run)]
    found += ["loop %s" % device for device in loops(directory)]
    found += ["volume %s" % argv[-1] for argv in volumes(run)]
    found += ["directory %s" % directory] if os.path.isdir(directory) else []
    return found


def logs(name: str) -> list[str]:
    """What Xen's tools wrote of the domains called ``name`` (a glob). The bootloader's log is named after the domid alone."""
    found = []
    for path in glob.glob("/var/log/xen/xl-%s.log*" % name):
        found.append(path)
        # Waiting for domain fxh-1a2b3c-1-control (domid 12) to die [pid 345]
        with open(path, "rb") as file:
            for domid in re.findall(rb"^Waiting for domain .* \(domid (\d+)\)", file.read(), re.MULTILINE):
                found += glob.glob("/var/log/xen/bootloader.%d.log*" % int(domid))
    for pattern in ("console/guest-%s.log*", "qemu-dm-%s.log*"):
        found += glob.glob("/var/log/xen/" + pattern % name)
    return sorted(set(found))


def remove(base: str, run: str, kept: tuple[str, ...] = ()) -> list[str]:
    """Remove all of a run's but the domains ``kept``; returns what could not be removed."""
    directory = "%s/run-%s" % (base, run)
    for _ in range(3):
        # First: a domain that is destroyed while its watcher builds it leaves what the watcher writes to xenstore afterwards.
        for number in watchers(directory, kept):
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        left = [row for row in domains() if row[0].startswith("fxh-%s-" % run) and row[0] not in kept]
        for row in left:
            output("xl", "destroy", str(row[1]))
        if not left:
            break
    if kept:
        return []
    for device in loops(directory):
        output("losetup", "-d", device)
    for argv in volumes(run):
        output(*argv)
    shutil.rmtree(directory, ignore_errors=True)
    for path in logs("fxh-%s-*" % run):
        os.unlink(path)
    return belongings(base, run)
