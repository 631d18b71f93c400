#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# pygrub (libfsimage) cuts off a kernel on UFS1 whose hole is as long as an indirect block of block numbers.
#
# Versions:  Debian 12: xen-utils-4.17 and libxenmisc4.17 4.17.7+13-g2445b30a44-0+deb12u1, makefs 20190105-3
# Behavior:  sbmap() in tools/libfsimage/ufs/fsys_ufs.c checks the numbers in the last indirect block for 0, and not those in the blocks
#            above it. Such a hole has no indirect block; sbmap() then takes what is left in a buffer (a directory) for block numbers.
#            pygrub extracts a part of the kernel and ends with 0.
# Output:    status 0, 4194304 of 9110000 bytes        (right would be: status 0, 9110000 of 9110000 bytes)
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the packages cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
xen=4.17.7+13-g2445b30a44-0+deb12u1
apt-get -qq download "xen-utils-4.17=$xen" "libxenmisc4.17=$xen" "libxentoollog1=$xen" makefs=20190105-3 libbsd0 libmd0 \
    >/dev/null 2>&1 || { echo "cannot fetch the packages: this needs Debian 12's archive" >&2; exit 2; }
for package in ./*.deb; do dpkg-deb -x "$package" root; done
lib=$work/root/usr/lib/xen-4.17/lib
export LD_LIBRARY_PATH="$lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu"
export XEN_FSIMAGE_FSDIR="$lib/x86_64-linux-gnu/xenfsimage" PYTHONPATH="$lib/python"
mkdir -p tree/boot/grub out
printf 'default=0\ntimeout=0\ntitle x\nroot (hd0)\nkernel /boot/kernel\n' > tree/boot/grub/menu.lst
{ head -c 10000 /dev/urandom; head -c 9000000 /dev/zero; head -c 100000 /dev/urandom; } > tree/boot/kernel
root/usr/sbin/makefs -t ffs -B little -o version=1,bsize=4096,fsize=512 -s 20m ufs.img tree >/dev/null
# Block 1036 of the file is the first below its double indirect block: the numbers of 1036 to 2059 become one hole.
/usr/bin/python3 - ufs.img <<'HOLE'
import struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
inode = data.find(struct.pack("<Q", 9110000)) - 8
(double,) = struct.unpack_from("<i", data, inode + 92)
struct.pack_into("<i", data, double * 512, 0)
open(sys.argv[1], "wb").write(data)
HOLE
truncate -s +4096 ufs.img
status=0
/usr/bin/python3 root/usr/lib/xen-4.17/bin/pygrub -q --output-format=simple --output-directory="$work/out" ufs.img >/dev/null 2>&1 || status=$?
got=$(cat out/* 2>/dev/null | wc -c)
echo "status $status, $got of 9110000 bytes"
cat out/* 2>/dev/null | cmp -s - tree/boot/kernel && exit 1
[ "$got" -lt 9110000 ]
