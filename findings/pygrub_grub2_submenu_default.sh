#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# pygrub counts the entries of submenus, so a numeric default of grub.cfg selects another kernel than GRUB does.
#
# Versions:  Debian 12: xen-utils-4.17 4.17.7+13-g2445b30a44-0+deb12u1
# Behavior:  GRUB counts the entries of the top level and takes a submenu for one entry (GRUB manual, "default"). Grub2ConfigFile.parse()
#            skips the line of a submenu and adds its entries to one flat list. "1>0", and titles, which GRUB also accepts, select the
#            first entry with a warning in the log.
# Output:    set default=2: old kernel          (GRUB: rescue)
#            set default=1>1: new kernel        (GRUB: old kernel)
#            set default=rescue: new kernel     (GRUB: rescue)
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the package cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download xen-utils-4.17=4.17.7+13-g2445b30a44-0+deb12u1 >/dev/null 2>&1 || {
  echo "cannot fetch the package: this needs Debian 12's archive" >&2; exit 2; }
dpkg-deb -x ./*.deb root
cat > show.py <<'PYTHON'
from grub.GrubConf import Grub2ConfigFile


def entry(title):
    return f"menuentry '{title}' --class os {{\n  linux /{title.replace(' ', '-')}\n}}\n"


menu = entry("new kernel") + "submenu 'Advanced' {\n" + entry("new kernel, verbose") + entry("old kernel") + "}\n" + entry("rescue")
for default in ("2", "1>1", "rescue"):
    config = Grub2ConfigFile()
    config.parse(f'set default="{default}"\n{menu}')
    print(f"set default={default}: {config.images[config.default].title}")
PYTHON
PYTHONPATH=root/usr/lib/xen-4.17/lib/python /usr/bin/python3 show.py 2>/dev/null | tee seen
printf 'set default=2: old kernel\nset default=1>1: new kernel\nset default=rescue: new kernel\n' | cmp -s - seen
