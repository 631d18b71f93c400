# SPDX-License-Identifier: BSD-2-Clause
# Runs as a hook of mmdebstrap, as root of its user namespace. $1 is the new root; the environment has the recipe's lists.
# Removes unneeded files, copies the files for the host to /fxh-out, and creates the disk image there: file owners are correct
# only inside this namespace.
set -eu
root="$1"; out="$root/fxh-out"; mkdir -p "$out/modules"
cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
for f in "$root"/boot/xen-*.gz; do cp "$f" "$out/xen.gz"; done
bb=/usr/bin/busybox; [ -e "$root$bb" ] || bb=/bin/busybox
cp "$root$bb" "$out/busybox"; chroot "$root" $bb --list > "$out/applets"
ver=$(ls "$root/usr/lib/modules" 2>/dev/null || ls "$root/lib/modules")
echo "$ver" > "$out/release"
depends() { chroot "$root" modprobe -S "$ver" --show-depends "$1" 2>/dev/null | sed -n 's/^insmod \(.*[^ ]\) *$/\1/p'; }
keep="$root/fxh-keep"; : > "$keep"
for m in $MODULES; do depends "$m" >> "$keep" || :; done
# pack MODULES NAME: copy the modules and their dependencies, decompressed; write the load order to NAME.order.
pack() {
    : > "$out/$2.order"
    for m in $1; do
        for f in $(depends "$m"); do
            n=$(basename "$f"); n=${n%.xz}
            if [ ! -f "$out/modules/$n" ]; then
                case "$f" in *.xz) xz -dc "$root$f" > "$out/modules/$n";; *) cp "$root$f" "$out/modules/$n";; esac
            fi
            grep -qx "$n" "$out/$2.order" || echo "$n" >> "$out/$2.order"
        done
    done
}
pack "$INITRD_MODULES" initrd
pack "$CONTROL_MODULES" control
for program in $CONTROL_PROGRAMS; do
    for f in "/$program" $(chroot "$root" ldd "/$program" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p'); do
        mkdir -p "$out/control-root${f%/*}"; cp -L "$root$f" "$out/control-root$f"
    done
done
( cd "$root" && find lib/modules/$ver/kernel -name '*.ko*' ) | sort > "$root/fxh-all"
sed 's,^/usr,,; s,^/,,' "$keep" | sort -u > "$root/fxh-kept"
comm -23 "$root/fxh-all" "$root/fxh-kept" | ( cd "$root" && xargs rm -f )
rm -f "$root"/fxh-all "$root"/fxh-kept "$keep"
chroot "$root" depmod "$ver"
for pattern in $TRIM; do ( cd "$root" && rm -rf -- $pattern ); done
rm -f "$root/sbin/init"; mv "$root/fxh-init" "$root/sbin/init"; chmod 755 "$root/sbin/init"
rm -f "$root/usr/sbin/xl"; mv "$root/fxh-xl" "$root/usr/sbin/xl"; chmod 755 "$root/usr/sbin/xl"
mv "$root/etc/xen/scripts/block" "$root/etc/xen/scripts/block.xen"; mv "$root/fxh-block" "$root/etc/xen/scripts/block"
mv "$root/fxh-vif" "$root/etc/xen/scripts/vif-fxh"; chmod 755 "$root/etc/xen/scripts/block" "$root/etc/xen/scripts/vif-fxh"
echo 'vif.default.script="vif-fxh"' >> "$root/etc/xen/xl.conf"
# Busybox provides the commands that Debian's packages lack.
for a in $(cat "$out/applets"); do
    for d in usr/bin usr/sbin bin sbin; do [ -e "$root/$d/$a" ] || [ -L "$root/$d/$a" ] && continue 2; done
    ln -s $bb "$root/usr/bin/$a"
done
mkdir -p "$root/usr/lib/fxh"; mv "$root/fxh-pae.so" "$root/usr/lib/fxh/pae_first.so"
echo 'root::0:0:root:/root:/bin/sh' > "$root/etc/passwd.fxh"; grep -v '^root:' "$root/etc/passwd" >> "$root/etc/passwd.fxh"
# libxl runs a restricted pygrub as this user's uid plus the domid (libxl_bootloader.c).
echo 'xen-qemuuser-range-base:x:131072:131072::/nonexistent:/usr/sbin/nologin' >> "$root/etc/passwd.fxh"
mv "$root/etc/passwd.fxh" "$root/etc/passwd"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"; echo lab > "$root/etc/hostname"
# While hooks run, mmdebstrap keeps proc, sys and dev mounted in the root. Create the disk from a copy without them.
mv "$root/fxh-out" "$root.out"; mkdir "$root.tree"
tar -C "$root" --one-file-system --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -cf - . | tar -C "$root.tree" -xpf -
mke2fs -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -d "$root.tree" "$root.img" "${SIZE}M"
rm -rf "$root.tree"
mv "$root.out" "$root/fxh-out"; mv "$root.img" "$root/fxh-out/root.img"; chmod -R a+rX "$root/fxh-out"
