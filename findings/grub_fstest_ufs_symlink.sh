#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# grub-fstest follows a short symbolic link of a UFS to the wrong file.
#
# Versions:  Debian 12: grub-common 2.06-13+deb12u2, makefs 20190105-3
# Behavior:  a short link lies in the inode itself. GRUB drops the last byte of its target, so a link
#            to `file12` opens `file1`, without any error.
# Output:    short: wrong        (right would be: right)
#            file12: right
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the packages cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download grub-common=2.06-13+deb12u2 makefs=20190105-3 libdevmapper1.02.1 libbsd0 libmd0 >/dev/null 2>&1 || {
  echo "cannot fetch the packages: this needs Debian 12's archive" >&2; exit 2; }
for package in ./*.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH="$work/root/lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu"
mkdir tree
echo right > tree/file12
echo wrong > tree/file1
ln -s file12 tree/short
root/usr/sbin/makefs -t ffs -B little -o version=1 -s 4m ufs.img tree >/dev/null
short=$(root/usr/bin/grub-fstest "$work/ufs.img" cat '(loop0)/short')
direct=$(root/usr/bin/grub-fstest "$work/ufs.img" cat '(loop0)/file12')
echo "short: $short"
echo "file12: $direct"
[ "$short" = wrong ] && [ "$direct" = right ]
