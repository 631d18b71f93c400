# SPDX-License-Identifier: BSD-2-Clause
"""Firmware of HVM guests: its names in xl.cfg, and the file that libxl loads for UEFI.

Sources: xen docs/man/xl.cfg.5.pod.in (``firmware``), tools/libs/light/libxl_dom.c (libxl__domain_firmware()) and
libxl_paths.c (libxl__ovmf_path()).
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import UsageError

BIOS, UEFI = "bios", "uefi"
FIRMWARES = (BIOS, UEFI)


def check(name: str) -> None:
    """Raise UsageError for an unknown value of ``--firmware``."""
    if name not in FIRMWARES:
        raise UsageError(f"--firmware {name}", hint=" or ".join(FIRMWARES))


# The path is compiled into libxl as a plain string (configure --with-system-ovmf). Debian installs a library for each Xen version,
# with the version in its name, so $1 selects the library of the running Xen. Prints lines such as:
#   libxl /usr/lib/x86_64-linux-gnu/libxenlight.so.4.20.0
#   ovmf /usr/share/ovmf/OVMF.fd
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


# edk2's platform OvmfXen begins with an ELF header, for PVH (OvmfPkg/XenElfHeader.fdf.inc). The platform OvmfPkgX64 has none, and
# since 2021 it does not start under Xen. Debian 12 and 13 install OvmfPkgX64.
NO_OVMF_XEN = "is not edk2's OvmfXen; a build of OvmfPkgX64 since 2021, as in Debian 12 and 13, does not start under Xen"
HINT = (
    "install edk2's OvmfXen there: build -p OvmfPkg/OvmfXen.dsc (Debian's package ovmf has the file, but since Debian 12 not for Xen); "
    "or build Xen with configure --with-system-ovmf=FILE"
)


def missing(words: Mapping[str, str]) -> str:
    """Why a host cannot start UEFI guests; "" if it can, or if :data:`PROBE` found no libxl.

    ``words`` maps the first word of each line that :data:`PROBE` printed to the rest of the line.
    """
    if "ovmf" in words or "libxl" not in words:
        return ""
    if path := words.get("ovmf-missing"):
        return f"no firmware file {path}, which {words['libxl']} loads for UEFI guests"
    return f"{words['libxl']} contains no path of OVMF: this Xen was built without OVMF"
