# SPDX-License-Identifier: BSD-2-Clause
"""Runs pygrub in dom0 as libxl does (xen tools/libs/light/libxl_bootloader.c), and parses its output."""

from __future__ import annotations

import ast
import base64
import gzip
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.dom0 import pygrub_fuzz
from harness.errors import InfrastructureError
from harness.transport import Transport
from harness.xen import dom0_program

# The users that libxl tries for a restricted pygrub. With the first, each domain has its own uid: that of the user plus the domid
# (xen tools/libs/light/libxl_bootloader.c, bootloader_uid()).
USERS = ("xen-qemuuser-range-base", "xen-qemuuser-shared")
# The directories of distributions and of Xen's own build. libxl searches its libexec directory, not PATH.
_FIND = """
for p in /usr/lib/xen-[0-9]*/bin/pygrub /usr/libexec/xen/bin/pygrub /usr/lib/xen/bin/pygrub /usr/local/lib/xen/bin/pygrub \
    /usr/local/libexec/xen/bin/pygrub; do [ -x "$p" ] && break; done
"""
# Prints a line each: pygrub's path; whether it supports the restricted mode, which pygrub and libxl got together with XSA-443; and
# its user. A user in xl's environment has priority over those of libxl.
_USER = f"""
for u in $LIBXL_BOOTLOADER_USER {" ".join(USERS)}; do n=$(id -u "$u" 2>/dev/null) && [ "$n" != 0 ] && break; n=; done
"""
PROBE = f"""{_FIND}{_USER}
if [ -x "$p" ]; then
  echo "pygrub $p"
  # On other systems depriv() of pygrub finds no mount --bind.
  if [ "$(uname)" = Linux ] && grep -q runas= "$p"; then echo "runas $p"; fi
  if [ -n "$n" ]; then echo "user $u"; fi
fi
"""
# `readable DISK NODE`: create a NODE for the disk that every user may read. A restricted pygrub opens the disk as an unprivileged
# user (xl.cfg(5)), but only root may read the node in /dev, and udev keeps that mode. NODE is in a directory of root, so other
# users cannot reach it.
READABLE = """
readable() {
  d=$(readlink -f "$1"); rm -f "$2"
  if [ -b "$d" ]; then mknod -m 644 "$2" b $(stat -c '0x%t 0x%T' "$d"); else chmod o+r "$d" && ln -s "$d" "$2"; fi
  head -c 1 "$2" > /dev/null
}
"""
# One round trip: reads an image from stdin if there is one, prints pygrub's output and the digests of the extracted files.
_RUN = """
rm -rf "$1"; mkdir -p "$1/out"; cd "$1"; shift
[ "$1" = - ] || gzip -dc > volume; shift
disk=$1; shift
if [ "$1" = restrict ]; then readable "$disk" disk || exit; disk=disk; else n=; fi; shift
timeout 150 "$p" ${n:+--runas=$n} "$@" "$disk" > said 2> error; echo "%status $?"
echo "%said $(base64 -w 0 said)"; echo "%error $(base64 -w 0 error)"
for f in out/*; do [ -f "$f" ] && sha256sum "$f"; done; true
"""


@dataclass(frozen=True)
class Extract:
    """The result of one run. ``kernel`` and ``ramdisk`` are paths in dom0; ``args`` is None if pygrub printed none.

    ``digests`` has pairs of path and sha256. ``seconds`` includes the copy of the image.
    """

    status: int
    seconds: float
    stdout: bytes
    error: str
    kernel: str = ""
    ramdisk: str = ""
    args: str | None = None
    digests: tuple[tuple[str, str], ...] = ()

    def digest(self, what: str) -> str:
        """The sha256 of ``kernel`` or ``ramdisk``; "" if it was not extracted."""
        return dict(self.digests).get(getattr(self, what), "")

    @property
    def complaint(self) -> str:
        """The last line on stderr, for example ``RuntimeError: Unable to find partition containing kernel``."""
        lines = [line for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run(
    transport: Transport,
    directory: str,
    disk: str | bytes,
    *options: str,
    style: str = "simple0",
    quiet: bool = True,
    restrict: bool = False,
) -> Extract:
    """Extract from ``disk``: a device or file in dom0, or the bytes of an image, which are copied to dom0 first.

    ``directory`` in dom0 must belong to the caller: it is recreated and holds the extracted files. With ``restrict``, pygrub runs
    as the user that libxl would use, if there is one. Then the status is 0 even for a failure, because pygrub passes its
    parent's status (os.waitpid) to sys.exit().
    """
    target = disk if isinstance(disk, str) else f"{directory}/volume"
    argv = [*(["-q"] if quiet else []), f"--output-format={style}", f"--output-directory={directory}/out", *options]
    script = ["sh", "-c", _FIND + _USER + READABLE + _RUN, "sh", directory]
    script += ["-" if isinstance(disk, str) else "volume", target, "restrict" if restrict else "-", *argv]
    stdin = b"" if isinstance(disk, str) else gzip.compress(disk, 1)
    begun = time.monotonic()
    text = transport.run(script, Deadline(170), stdin=stdin).text
    seconds = time.monotonic() - begun
    fields = dict(line[1:].split(" ", 1) for line in text.splitlines() if line.startswith("%"))
    status, stdout = int(fields["status"]), base64.b64decode(fields["said"])
    kernel, ramdisk, args = PARSERS[style](stdout) if status == 0 else ("", "", None)
    sums = (line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[0-9a-f]{64} ", line))
    digests = tuple((f"{directory}/{name}", digest) for digest, name in sums)
    error = base64.b64decode(fields["error"]).decode("utf-8", "replace")
    return Extract(status, seconds, stdout, error, kernel, ramdisk, args, digests)


@dataclass(frozen=True)
class FuzzReport:
    """``odd`` describes each run that hung, was killed by a signal, or had an unexpected exit status.

    ``seeds`` are the seeds of those runs in the same order. Store them in the run's evidence only: each makes pygrub fail.
    ``slowest`` is in seconds.
    """

    runs: int
    slowest: float
    counts: dict[str, int]
    odd: tuple[str, ...]
    seeds: tuple[int, ...]
    strays: tuple[str, ...]
    """Files that pygrub changed outside its output directory."""


def fuzz(
    transport: Transport, directory: str, image: Path, kind: str, first: int, count: int, menu: tuple[int, int] = (0, 0)
) -> FuzzReport:
    """Run pygrub on ``count`` mutations of ``image``, with the seeds from ``first`` on.

    ``directory`` in dom0 must belong to the caller; it is removed afterwards. ``kind`` is ``menu`` (mutate the text at the offset
    and length ``menu``) or ``image`` (mutate the metadata of the file system). Raises InfrastructureError if the fuzzer fails.
    """
    words = [f"{directory}/base", kind, str(first), str(count), f"{directory}/scratch", str(menu[0]), str(menu[1])]
    wrapper = ["sh", "-c", _FIND + 'exec "$@" "$p"', "sh"]
    transport.run(["mkdir", "-p", directory])
    try:
        transport.put(image, f"{directory}/base")
        done = dom0_program.run(transport, pygrub_fuzz, *words, deadline=Deadline(600), wrapper=wrapper)
    finally:
        transport.run(["rm", "-rf", directory])
    reports = [json.loads(line) for line in done.text.splitlines() if line.startswith("{")]
    if not reports or "counts" not in reports[-1]:
        raise InfrastructureError(f"the fuzzer in dom0 failed: {done.stderr.decode(errors='replace')[-600:]}")
    last = reports.pop()
    strays = tuple(one["wrote"] for one in reports if "wrote" in one)
    ends = [one for one in reports if "how" in one]
    odd = tuple(f"a mutated {kind}: {one['how']} after {one['seconds']} s" for one in ends)
    seeds = tuple(int(one["seed"]) for one in ends)
    return FuzzReport(sum(last["counts"].values()), last["slowest"], last["counts"], odd, seeds, strays)


Parsed = tuple[str, str, str | None]


def _simple(stdout: bytes, end: bytes) -> Parsed:
    # kernel /var/.../boot_kernel.x1\0ramdisk /var/...\0args a=b\0\0
    found = {}
    for word in stdout.split(end):
        key, blank, value = word.decode("utf-8", "replace").partition(" ")
        if blank:
            found[key] = value
    return found.get("kernel", ""), found.get("ramdisk", ""), found.get("args")


def parse_simple0(stdout: bytes) -> Parsed:
    return _simple(stdout, b"\0")


def parse_simple(stdout: bytes) -> Parsed:
    return _simple(stdout, b"\n")


# linux (kernel '/path')(ramdisk '/path')(args 'a=b')        quotes are Python's repr since XSA-198
_SXP = re.compile(r"\((kernel|ramdisk|args) ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^)]*)\)")


def parse_sxp(stdout: bytes) -> Parsed:
    found = {}
    for key, value in _SXP.findall(stdout.decode("utf-8", "replace")):
        found[key] = str(ast.literal_eval(value)) if value[:1] in "'\"" else value
    return found.get("kernel", ""), found.get("ramdisk", ""), found.get("args")


PARSERS = {"simple0": parse_simple0, "simple": parse_simple, "sxp": parse_sxp}
