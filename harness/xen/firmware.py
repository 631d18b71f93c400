# SPDX-License-Identifier: BSD-2-Clause
"""Firmwares of HVM guests: xl.cfg's names for them, and the file that libxl loads for UEFI.

Sources: xen docs/man/xl.cfg.5.pod.in (``firmware``), tools/libs/light/libxl_dom.c (libxl__domain_firmware()) and
libxl_paths.c (libxl__ovmf_path()).
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import UsageError

BIOS, UEFI = "bios", "uefi"
FIRMWARES = (BIOS, UEFI)


def check(name: str) -> None:
    """Raises UsageError for a ``--firmware`` that is none of FIRMWARES."""
    if name not in FIRMWARES:
        raise UsageError(f"--firmware {name}", hint=" or ".join(FIRMWARES))


# A build of Xen compiles the path in (configure --with-system-ovmf); the library holds it as a plain string. Debian installs a
# library for each Xen version and names the version in the file name, so $1 picks the one that belongs to the running Xen.
#   /usr/share/ovmf/OVMF.fd
PROBE = r"""
for lib in /usr/lib/*/libxenlight.so."$1".* /usr/lib/libxenlight.so."$1".* /usr/lib64/libxenlight.so."$1".* \
    /usr/local/lib/libxenlight.so."$1".* /usr/local/lib64/libxenlight.so."$1".*; do
  [ -f "$lib" ] || continue
  echo "libxl $lib"
  path=$(grep -aoE '/[A-Za-z0-9._+/-]*[Oo][Vv][Mm][Ff][A-Za-z0-9._+/-]*' "$lib" | head -n 1)
  [ -n "$path" ] || break
  if [ -s "$path" ]; then echo "ovmf $path"; else echo "ovmf-missing $path"; fi
  head -c 4 "$path" 2>/dev/null | grep -q ELF && echo "ovmf-xen $path"
  break
done
"""


# edk2's platform OvmfXen begins with an ELF header, for PVH (OvmfPkg/XenElfHeader.fdf.inc). Its platform OvmfPkgX64 has none, and
# does not start under Xen since 2021; Debian 12 and 13 ship that one.
NO_OVMF_XEN = "is not edk2's OvmfXen: if it is of 2021 or later, as in Debian 12 and 13, it does not start under Xen"
HINT = (
    "put edk2's OvmfXen there: build -p OvmfPkg/OvmfXen.dsc (Debian's package ovmf has the file, but since Debian 12 not for Xen); "
    "or build Xen with configure --with-system-ovmf=FILE"
)


def missing(words: Mapping[str, str]) -> str:
    """Return why a host cannot start UEFI guests, or "" where it can, or where no libxl was found to ask.

    ``words`` are the lines that :data:`PROBE` printed, split into their first word and the rest.
    """
    if "ovmf" in words or "libxl" not in words:
        return ""
    if path := words.get("ovmf-missing"):
        return f"no firmware file {path}, which {words['libxl']} loads for UEFI guests"
    return f"{words['libxl']} names no OVMF file: this Xen was built without it"
