# Builds OVMF for Xen from Debian's source of edk2. mmdebstrap runs this in its hook, with the root of the build in $1.
# PLATFORM, DEFINES, PCDS and PACKAGE come from images/dom0/common.toml; the result is /fxh-out/OVMF.fd of that root.
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
# QEMU's TCG aborts when a guest under SVM writes CR8 while an interrupt of its hypervisor is pending (docs/lab.md). The exception
# handlers write back the value that they read and never change.
handlers=UefiCpuPkg/Library/CpuExceptionHandlerLib/X64
grep -q 'mov  *cr8, *rax' $handlers/ExceptionHandlerAsm.nasm
sed -i 's/mov\( *\)cr8, *rax/nop/' $handlers/*.nasm
export PYTHON_COMMAND=/usr/bin/python3 WORKSPACE="$PWD"
jobs=$(nproc)
make -s -C BaseTools/Source/C -j"$jobs"
set -- BaseTools; set +eu; . ./edksetup.sh; set -eu
words=
for define in $DEFINES; do words="$words -D $define"; done
for pcd in $PCDS; do words="$words --pcd $pcd"; done
build -q -n "$jobs" -a X64 -t GCC5 -b RELEASE -p "$PLATFORM" $words
cp Build/*/RELEASE_GCC5/FV/OVMF.fd /fxh-out/OVMF.fd
INNER
chroot "$root" bash /fxh-build
chmod -R a+rX "$root/fxh-out"
