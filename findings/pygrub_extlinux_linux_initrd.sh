#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# pygrub ignores the lines LINUX and INITRD of extlinux.conf.
#
# Versions:  Debian 12: xen-utils-4.17 4.17.7+13-g2445b30a44-0+deb12u1
# Behavior:  SYSLINUX documents LINUX (a kernel) and INITRD for an entry. ExtLinuxConf.py knows only LABEL, KERNEL and APPEND, and takes
#            an initrd from "initrd=" in APPEND. An entry with KERNEL and INITRD starts without its initrd; an entry with LINUX has no
#            kernel. Both give a warning in the log of dom0 and no error.
# Output:    with KERNEL: kernel /vmlinuz, initrd None
#            with LINUX: kernel None, initrd None
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the package cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download xen-utils-4.17=4.17.7+13-g2445b30a44-0+deb12u1 >/dev/null 2>&1 || {
  echo "cannot fetch the package: this needs Debian 12's archive" >&2; exit 2; }
dpkg-deb -x ./*.deb root
cat > show.py <<'PYTHON'
from grub.ExtLinuxConf import ExtLinuxConfigFile

for word in ("KERNEL", "LINUX"):
    config = ExtLinuxConfigFile()
    config.filename = "/extlinux.conf"
    config.parse(f"DEFAULT one\nLABEL one\n  {word} /vmlinuz\n  INITRD /initramfs\n  APPEND root=/dev/xvda1\n")
    (image,) = config.images
    kernel, initrd = (part and part[1] for part in (image.kernel, image.initrd))
    print(f"with {word}: kernel {kernel}, initrd {initrd}")
PYTHON
PYTHONPATH=root/usr/lib/xen-4.17/lib/python /usr/bin/python3 show.py 2>/dev/null | tee seen
printf 'with KERNEL: kernel /vmlinuz, initrd None\nwith LINUX: kernel None, initrd None\n' | cmp -s - seen
