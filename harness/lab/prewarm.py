# SPDX-License-Identifier: BSD-2-Clause
"""What dom0 does once before it is kept as a checkpoint: the labs restored from it have it in memory, and hot ones translated."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.hosts import inventory
from harness.transport import Transport

# Boot's leftovers in dom0's page cache go out of the state that every later lab starts from, and what every case needs comes in:
# it is not read and unpacked from the disk again. A domain is built and ended, pygrub finds its kernel on a disk, leaks are looked
# for: what each does a second time is quick. Nothing but the number of the next domain tells that it was.
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
    """Raises what the connection does; what fails there does not matter."""
    dom0.run(["sh", "-c", _SCRIPT, "sh", inventory.SCRIPT], Deadline(120), check=False)
