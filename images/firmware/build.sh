# SPDX-License-Identifier: BSD-2-Clause
# Builds OVMF for Xen from Debian's source of edk2. mmdebstrap runs this in its hook, with the root of the build in $1.
# PACKAGE, PLATFORM and DEFINES come from images/dom0/common.toml; the result is /fxh-out/OVMF.fd of that root.
set -eu
root="$1"
sed -n 's/^deb /deb-src /p' "$root/etc/apt/sources.list" > "$root/etc/apt/sources.list.d/source.list"
cat > "$root/fxh-build" <<'INNER'
set -eu
mkdir /fxh-source /fxh-out; cd /fxh-source
apt-get -q update
# Only upstream's archive: Debian's patches concern the builds that Debian ships.
apt-get -q source --download-only --tar-only "$PACKAGE"
tar -xf "$PACKAGE"_*.orig.tar.* --strip-components=1
# Debian takes the source of this tool out of the archive.
sed -i '/BrotliCompress/d' BaseTools/Source/C/GNUmakefile

# change FILE PATTERN REPLACEMENT: an edit that finds nothing to change is an error.
change() {
    grep -q "$2" "$1" || { echo "error: $1 has no line with $2" >&2; exit 1; }
    sed -i "s/$2/$3/" "$1"
}
# The reasons are in docs/lab.md, UEFI.
# The third QEMU defect in docs/lab.md. The handlers write back the value that they read and never change.
change UefiCpuPkg/Library/CpuExceptionHandlerLib/X64/ExceptionHandlerAsm.nasm 'mov *cr8, *rax' nop
change UefiCpuPkg/Library/CpuExceptionHandlerLib/X64/SecPeiExceptionHandlerAsm.nasm 'mov *cr8, *rax' nop
# Measured within 1 ms under emulation, the clock of the local APIC comes out three times too slow. Xen's has 100 MHz, the default.
change OvmfPkg/XenPlatformPei/Platform.c 'CalibrateLapicTimer ();' ';'
# Each tick polls keyboard and serial port, whose registers are in a device model: 200 ms between ticks instead of 10.
change OvmfPkg/LocalApicTimerDxe/LocalApicTimerDxe.h '\(DEFAULT_TIMER_TICK_DURATION *\)100000' '\12000000'
# The PS/2 keyboard's driver waits by counting accesses to a port, for half a minute. The console is the serial port.
for list in OvmfPkg/OvmfXen.dsc OvmfPkg/OvmfXen.fdf; do change $list '.*Ps2KeyboardDxe.*' ''; done
# OvmfXen's own clock always tells the same second of 2015, so FreeBSD's loader counts down for ever. Xen emulates a PC's clock.
for list in OvmfPkg/OvmfXen.dsc OvmfPkg/OvmfXen.fdf; do
    change $list EmbeddedPkg.RealTimeClockRuntimeDxe.RealTimeClockRuntimeDxe.inf \
        'PcAtChipsetPkg\/PcatRealTimeClockRuntimeDxe\/PcatRealTimeClockRuntimeDxe.inf'
done
# QEMU's PC for Xen has one PCI bus; looking at 256 takes 100 s under emulation.
change OvmfPkg/Library/PciHostBridgeLibScan/ScanForRootBridges.c 'PrimaryBus <= PCI_MAX_BUS' 'PrimaryBus == 0'

export PYTHON_COMMAND=/usr/bin/python3 WORKSPACE="$PWD"
jobs=$(nproc)
make -s -C BaseTools/Source/C -j"$jobs"
set -- BaseTools; set +eu; . ./edksetup.sh; set -eu
words=
for define in $DEFINES; do words="$words -D $define"; done
build -q -n "$jobs" -a X64 -t GCC5 -b RELEASE -p "$PLATFORM" $words
cp Build/*/RELEASE_GCC5/FV/OVMF.fd /fxh-out/OVMF.fd
INNER
chroot "$root" bash /fxh-build
chmod -R a+rX "$root/fxh-out"
