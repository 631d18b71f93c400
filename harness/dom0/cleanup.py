# SPDX-License-Identifier: BSD-2-Clause
"""Part of the lease agent: list and remove the resources of a run on this host."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess

# fxh-1a2b3c-1-control
NAME = re.compile(r"fxh-([a-z0-9]{1,16})-\d+-")
# Domain-0                                     0   768     2     r-----      20.6
_DOMAIN = re.compile(r"(\S*)\s+(\d+)\s+(\d+)\s+(\d+)\s+[-rbpscdwS?]{6}\s")
# Waiting for domain fxh-1a2b3c-1-control (domid 12) to die [pid 345]
_DOMID = re.compile(rb"^Waiting for domain .* \(domid (\d+)\)", re.MULTILINE)


def output(*argv: str) -> str:
    """The standard output of a tool, or "" if the tool is missing or takes more than 120 s."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def domains() -> list[tuple[str, int, int, int]]:
    """(name, domid, MiB, vCPUs) of all domains."""
    matches = [_DOMAIN.match(line) for line in output("xl", "list").splitlines()]
    return [(match.group(1), int(match.group(2)), int(match.group(3)), int(match.group(4))) for match in matches if match]


def loops(directory: str) -> list[str]:
    """Loop devices whose file is in ``directory``."""
    found = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(path) as file:
                if file.read().startswith(directory + "/"):
                    found.append("/dev/" + path.split("/")[3])
        except OSError:
            continue
    return found


def xl_daemons(directory: str, kept: tuple[str, ...]) -> list[int]:
    """The pids of the xl processes that wait for the end of a domain with a configuration in ``directory``, except ``kept``.

    Such a process rebuilds its domain two seconds after the end if on_reboot or on_crash says so (xl_vmcontrol.c). In these two
    seconds, xl lists no domain.
    """
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        names = {os.path.basename(word)[: -len(".cfg")] for word in words if word.startswith(directory + "/")}
        if os.path.basename(words[0]) == "xl" and names - set(kept):
            found.append(int(path.split("/")[2]))
    return found


def remove_volume_commands(run: str) -> list[tuple[str, ...]]:
    """Commands that remove the run's logical volumes and zvols. The last word of each is the volume."""
    found: list[tuple[str, ...]] = []
    for line in output("lvs", "--noheadings", "-o", "vg_name,lv_name").splitlines():
        words = line.split()
        if len(words) == 2 and words[1].startswith("fxh-%s-" % run):
            found.append(("lvremove", "-f", words[0] + "/" + words[1]))
    for name in output("zfs", "list", "-H", "-t", "volume", "-o", "name").split("\n"):
        if name.rpartition("/")[2].startswith("fxh-%s-" % run):
            found.append(("zfs", "destroy", name))
    return found


def resources(base: str, run: str) -> list[str]:
    """Describe what :func:`remove` would remove, for example ``domain fxh-1a2b3c-1-control``. Log files are not listed."""
    directory = "%s/run-%s" % (base, run)
    found = ["domain %s" % row[0] for row in domains() if row[0].startswith("fxh-%s-" % run)]
    found += ["loop %s" % device for device in loops(directory)]
    found += ["volume %s" % argv[-1] for argv in remove_volume_commands(run)]
    found += ["directory %s" % directory] if os.path.isdir(directory) else []
    return found


def logs(name: str) -> list[str]:
    """The log files of Xen's tools for the domains called ``name`` (a glob).

    The name of the bootloader's log contains only a domid. The log of xl says which domids a domain had.
    """
    found = []
    for path in glob.glob("/var/log/xen/xl-%s.log*" % name):
        found.append(path)
        with open(path, "rb") as file:
            for domid in _DOMID.findall(file.read()):
                found += glob.glob("/var/log/xen/bootloader.%d.log*" % int(domid))
    for pattern in ("console/guest-%s.log*", "qemu-dm-%s.log*"):
        found += glob.glob("/var/log/xen/" + pattern % name)
    return sorted(set(found))


def remove(base: str, run: str, kept: tuple[str, ...] = ()) -> list[str]:
    """Remove the resources of a run. Returns those that could not be removed.

    If ``kept`` names domains, only the other domains are removed, and everything that ``kept`` may need stays.
    """
    directory = "%s/run-%s" % (base, run)
    for _ in range(3):
        # Kill xl before its domain: if a domain is destroyed while xl builds it, xl continues and leaves entries in xenstore.
        for pid in xl_daemons(directory, kept):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        left = [row for row in domains() if row[0].startswith("fxh-%s-" % run) and row[0] not in kept]
        for row in left:
            output("xl", "destroy", str(row[1]))
        if not left:
            break
    if kept:
        return []
    for device in loops(directory):
        output("losetup", "-d", device)
    for argv in remove_volume_commands(run):
        output(*argv)
    shutil.rmtree(directory, ignore_errors=True)
    for path in logs("fxh-%s-*" % run):
        os.unlink(path)
    return resources(base, run)
