# SPDX-License-Identifier: BSD-2-Clause
"""Run common programs in dom0 once before it is saved, so that restored labs have their files in memory (and code translated)."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.hosts import inventory
from harness.transport import Transport

# Drop the files of the boot from dom0's page cache. Load the files that every case needs, so that no case reads and unpacks them
# from the disk. Build and end a domain, let pygrub find a kernel on a disk, and take the inventory: each is fast the second time.
# The only trace that remains is the number of the next domain. $1: the script of the inventory.
_SCRIPT = """
sync; echo 3 > /proc/sys/vm/drop_caches
xl list; xl info; xl domid none; xl console none; sh -c 'echo | grep x | tr a b'; stat /; df -P /
bash -c true; ethtool --version; tcpdump --version; losetup -a
for n in 1 2 3; do xenstore-read /local/domain/0/name; ip link; done
cat /usr/lib/xen-*/bin/xenconsole /usr/sbin/blockdev /usr/bin/head > /dev/null
mkdir /tmp/rehearsal && cd /tmp/rehearsal && mkdir out mounted || exit 1
dd if=/dev/zero of=disk bs=1M count=4; mke2fs -F disk; mount -o loop disk mounted
mkdir -p mounted/boot/grub; echo kernel > mounted/boot/kernel
printf 'default=0\\ntimeout=0\\ntitle warm\\nroot (hd0)\\nkernel /boot/kernel\\n' > mounted/boot/grub/menu.lst
umount mounted
python3 -S -E -c 'import ast, ctypes, json, os, select, socket, struct, time'
for n in 1 2; do
  for p in /usr/lib/xen-*/bin/pygrub; do "$p" -q --output-format=simple0 --output-directory=/tmp/rehearsal/out disk; done
  printf 'name="warm"\\ntype="pvh"\\nkernel="%s"\\nmemory=32\\nvif=[""]\\ndisk=["%s/disk,raw,xvda,r"]\\n' \
    /usr/lib/xen-*/boot/xen-shim "$PWD" > warm.cfg
  xl create -p warm.cfg; xl domid warm; xenstore-ls -f /; xl destroy warm
  sh -c "$1"
done
cd /; rm -rf /tmp/rehearsal /var/log/xen/*warm* /var/log/xen/console/*warm*; true
"""


def run(dom0: Transport) -> None:
    """Run the script in dom0. Raises as the connection does; a failure of the script has no effect."""
    dom0.run(["sh", "-c", _SCRIPT, "sh", inventory.SCRIPT], Deadline(300), check=False)
