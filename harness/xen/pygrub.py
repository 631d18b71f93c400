# SPDX-License-Identifier: BSD-2-Clause
"""pygrub by hand in dom0, as libxl calls it (xen tools/libs/light/libxl_bootloader.c), and what it says."""

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

# libxl's own names of the users that a restricted pygrub may run as: the first gives each domain a uid of its own, that
# user's plus the domid (xen tools/libs/light/libxl_bootloader.c, bootloader_uid()).
USERS = ("xen-qemuuser-range-base", "xen-qemuuser-shared")
# Where distributions and Xen's own build put it; libxl looks in its libexec directory, not in PATH.
_FIND = """
for p in /usr/lib/xen-[0-9]*/bin/pygrub /usr/libexec/xen/bin/pygrub /usr/lib/xen/bin/pygrub /usr/local/lib/xen/bin/pygrub \
    /usr/local/libexec/xen/bin/pygrub; do [ -x "$p" ] && break; done
"""
# A line each: pygrub and where it is; whether it and libxl know the restricted mode (they came together, with XSA-443); as whom.
# libxl takes a user that xl's environment names before its own.
_USER = f"""
for u in $LIBXL_BOOTLOADER_USER {" ".join(USERS)}; do n=$(id -u "$u" 2>/dev/null) && [ "$n" != 0 ] && break; n=; done
"""
PROBE = f"""{_FIND}{_USER}
if [ -x "$p" ]; then
  echo "pygrub $p"
  # Elsewhere its depriv() finds no mount --bind.
  if [ "$(uname)" = Linux ] && grep -q runas= "$p"; then echo "runas $p"; fi
  if [ -n "$n" ]; then echo "user $u"; fi
fi
"""
# `readable DISK NODE`: a name for a disk that any user may read who gets at it. A restricted pygrub opens the disk as a user
# of its own (xl.cfg(5)); the node in /dev is root's, and udev sees to it that it stays so. NODE is in a directory of root's:
# nobody gets at it to whom pygrub, still root, does not show it.
READABLE = """
readable() {
  d=$(readlink -f "$1"); rm -f "$2"
  if [ -b "$d" ]; then mknod -m 644 "$2" b $(stat -c '0x%t 0x%T' "$d"); else chmod o+r "$d" && ln -s "$d" "$2"; fi
  head -c 1 "$2" > /dev/null
}
"""
# One round trip: an image may come in on stdin; what pygrub said goes out, with the digests of what it extracted.
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
    """One run. ``kernel`` and ``ramdisk`` are paths in dom0, ``args`` None where none were said; ``digests`` sha256 by path."""

    status: int
    seconds: float
    said: bytes
    error: str
    kernel: str = ""
    ramdisk: str = ""
    args: str | None = None
    digests: tuple[tuple[str, str], ...] = ()

    def digest(self, what: str) -> str:
        """Of ``kernel`` or ``ramdisk``; "" when it was not extracted."""
        return dict(self.digests).get(getattr(self, what), "")

    @property
    def complaint(self) -> str:
        """The last line that it said on stderr, for example ``RuntimeError: Unable to find partition containing kernel``."""
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
    """Extract from ``disk``: a device or file in dom0, or an image's bytes, which are put there first.

    ``directory`` in dom0 is ours alone; it is made anew, and holds what came out until it is removed.
    With ``restrict`` it runs as the user that libxl would take, where there is one; then a failure's status is 0, too, since
    pygrub gives its parent's (os.waitpid) to sys.exit().
    """
    target = disk if isinstance(disk, str) else f"{directory}/volume"
    argv = [*(["-q"] if quiet else []), f"--output-format={style}", f"--output-directory={directory}/out", *options]
    script = ["sh", "-c", _FIND + _USER + READABLE + _RUN, "sh", directory]
    script += ["-" if isinstance(disk, str) else "volume", target, "restrict" if restrict else "-", *argv]
    stdin = b"" if isinstance(disk, str) else gzip.compress(disk, 1)
    begun = time.monotonic()
    text = transport.run(script, Deadline(170), stdin=stdin).text
    seconds = time.monotonic() - begun
    told = dict(line[1:].split(" ", 1) for line in text.splitlines() if line.startswith("%"))
    status, said = int(told["status"]), base64.b64decode(told["said"])
    kernel, ramdisk, args = PARSERS[style](said) if status == 0 else ("", "", None)
    sums = (line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[0-9a-f]{64} ", line))
    digests = tuple((f"{directory}/{name}", digest) for digest, name in sums)
    error = base64.b64decode(told["error"]).decode("utf-8", "replace")
    return Extract(status, seconds, said, error, kernel, ramdisk, args, digests)


@dataclass(frozen=True)
class FuzzReport:
    """``odd`` has a line of words for each run that hung, was killed by a signal, or ended with a status of its own.

    ``seeds`` are theirs, in the same order. They belong into the run's evidence alone: each makes outside software fail.
    """

    runs: int
    slowest: float
    counts: dict[str, int]
    odd: tuple[str, ...]
    seeds: tuple[int, ...]
    strays: tuple[str, ...]
    """Files that appeared outside the directory that pygrub was given."""


_FUZZ = """
d=$1; mkdir -p "$d"; touch "$d/stamp"; sleep 1
shift; "$@" "$p"
{ find / -xdev -type f -newer "$d/stamp" ! -path "$d/*" ! -path '/proc/*' ! -path '/var/log/*' \
    ! -path '/var/lib/xenstored/*' ! -path '/run/*' ! -path '/var/lib/fxh/*' ! -name '*.pyc'
find "$d" -type f -newer "$d/stamp" ! -path "$d/scratch/*"; } | sed 's/^/stray /'
"""


def fuzz(
    transport: Transport, directory: str, image: Path, kind: str, first: int, count: int, menu: tuple[int, int] = (0, 0)
) -> FuzzReport:
    """Real pygrub against ``count`` mutations of ``image``, by seeds from ``first`` on.

    ``directory`` in dom0 is ours alone, and removed afterwards. ``kind`` is ``menu`` (the text at offset and length ``menu``) or ``image`` (the file system's metadata).
    """
    transport.run(["mkdir", "-p", directory])
    transport.put(image, f"{directory}/base")
    words = [f"{directory}/base", kind, str(first), str(count), f"{directory}/scratch", str(menu[0]), str(menu[1])]
    wrapper = ["sh", "-c", _FIND + _FUZZ, "sh", directory]
    done = dom0_program.run(transport, pygrub_fuzz, *words, deadline=Deadline(600), wrapper=wrapper)
    transport.run(["rm", "-rf", directory])
    lines = done.text.splitlines()
    reports = [json.loads(line) for line in lines if line.startswith("{")]
    if not reports or "counts" not in reports[-1]:
        raise InfrastructureError(f"the fuzzer in dom0 ended early: {done.stderr.decode(errors='replace')[-600:]}")
    last = reports.pop()
    odd = tuple(f"a mutated {kind}: {one['how']} after {one['seconds']} s" for one in reports)
    seeds = tuple(int(one["seed"]) for one in reports)
    strays = tuple(line.removeprefix("stray ") for line in lines if line.startswith("stray "))
    return FuzzReport(sum(last["counts"].values()), last["slowest"], last["counts"], odd, seeds, strays)


Parsed = tuple[str, str, str | None]


def _simple(said: bytes, end: bytes) -> Parsed:
    # kernel /var/.../boot_kernel.x1\0ramdisk /var/...\0args a=b\0\0
    found = {}
    for word in said.split(end):
        key, blank, value = word.decode("utf-8", "replace").partition(" ")
        if blank:
            found[key] = value
    return found.get("kernel", ""), found.get("ramdisk", ""), found.get("args")


def parse_simple0(said: bytes) -> Parsed:
    return _simple(said, b"\0")


def parse_simple(said: bytes) -> Parsed:
    return _simple(said, b"\n")


# linux (kernel '/path')(ramdisk '/path')(args 'a=b')        quotes are Python's repr since XSA-198
_SXP = re.compile(r"\((kernel|ramdisk|args) ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^)]*)\)")


def parse_sxp(said: bytes) -> Parsed:
    found = {}
    for key, value in _SXP.findall(said.decode("utf-8", "replace")):
        found[key] = str(ast.literal_eval(value)) if value[:1] in "'\"" else value
    return found.get("kernel", ""), found.get("ramdisk", ""), found.get("args")


PARSERS = {"simple0": parse_simple0, "simple": parse_simple, "sxp": parse_sxp}
