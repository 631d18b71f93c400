# SPDX-License-Identifier: BSD-2-Clause
"""Normalises messages, so that the same fault gives the same text in every run and in kernels of every build directory."""

from __future__ import annotations

import re

# The directories with source files in FreeBSD's sys/ and in Linux's root.
_FREEBSD = (
    "amd64 arm arm64 bsm cam cddl compat conf contrib crypto ddb dev fs gdb geom gnu i386 i4b isa isofs kern kgssapi libkern mips modules "
    "net net80211 netatalk netgraph netinet netinet6 netipsec netipx netlink netncp netnatm netpfil netpatm netsmb nfs nfsclient nfsserver "
    "nlm ofed opencrypto pc98 pci powerpc riscv rpc security sparc64 sys teken tests tools ufs vm x86 xdr xen"
)
_LINUX = "arch block certs crypto drivers fs include init io_uring ipc kernel lib mm net rust samples security sound usr virt"
# The part before the last sys/ that is followed by a directory of the kernel:
# /usr/src/sys/dev/xyz/xyz.c     /jobs/881/freebsd-src/sys/dev/xyz/xyz.c
_FREEBSD_PATH = re.compile(rf"(?:[\w.+@~-]*/)+(?=sys/(?:{'|'.join(_FREEBSD.split())})/[\w./+-]+)")
# A generated file: /build/xyz/sys/GENERIC/vnode_if.c
_OTHER_PATH = re.compile(r"(?<![\w.+@~-])/(?:[\w.+@~-]+/)*?(?=sys/[\w./+-]+\.[chSsm]\b)")
# ../../../kern/xyz.c, in kernels that config(8) builds in sys/<machine>/compile
# @/dev/xyz/xyz.c, in modules up to 13: @ is a link to sys in their object directory
_RELATIVE = re.compile(rf"(?:(?:[\w.+@~-]*/)*(?:\.\./)+|(?<![\w./-])@/)(?=(?:{'|'.join(_FREEBSD.split())})/[\w./+-]+\.[chSsm]\b)")
# ../mm/xyz.c, in a kernel that was built in a subdirectory of its sources
_LINUX_RELATIVE = re.compile(rf"(?<![\w.+@~/-])\.\./(?=(?:{'|'.join(_LINUX.split())})/[\w./+-]+\.(?:c|h|S|rs)\b)")
_LINUX_PATH = re.compile(rf"(?<![\w.+@~:-])/(?:[\w.+@~:-]+/)*?(?=(?:{'|'.join(_LINUX.split())})/[\w./+-]+\.(?:c|h|S|rs)\b)")

# A guest's output is hostile, so limit the characters of a message.
_LONGEST = 1024
_NUMBERS = (
    # 6ba7b810-9dad-11d1-80b4-00c04fd430c8
    r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b",
    # 00:16:3e:aa:bb:cc      fe80::216:3eff:feaa:bbcc
    r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b",
    r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){2,7}:?[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){0,6}:?(?![\w:])",
    r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:)+:(?:[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*:?)?(?![\w:])",
    r"0[xX][0-9a-fA-F]+",
    r"\b0o[0-7]+\b",
    r"\b[0-9a-f]{8,}\b",
    r"\b[0-9A-F]{8,}\b",
    # addr: c000     flags=beef     address 1a000
    r"(?<=@)[0-9a-fA-F]*\d[0-9a-fA-F]*\b(?![./])",
    # 1a000     7F: begins with a digit
    r"\b\d+[a-f][0-9a-f]*\b",
    r"\b\d+[A-F][0-9A-F]*\b",
    # c000     ff00     a1b2: begins with a letter, and is no name and unit of a device (da0, ada10)
    r"\b(?![a-z]{2,}(?:0|[1-9]\d?)\b)(?=[a-f]+\d)[0-9a-f]{4,}\b",
    r"\b(?![A-Z]{2,}(?:0|[1-9]\d?)\b)(?=[A-F]+\d)[0-9A-F]{4,}\b",
    r"\d+",
)
_NUMBER = re.compile("|".join(_NUMBERS))
# A hexadecimal number follows these words, with or without "=" or ":".
_ANNOUNCED = re.compile(
    r"(?i)\b((?:addr(?:ess)?|[vp]a|[pv]addr|ptr|pointer|pc|[rei]?ip|[re]?sp|[re]?bp|lr|elr|esr|far|base|offset|mask|flags?|cookie|handle|pte|pde"
    r"|pindex|[gmp]?fn|[gmp]fn|cr[0-4]|val(?:ue)?|code|size|len(?:gth)?|blkno|block|inode|ino|lba)(?: ?[:=] ?|(?= \w*\d) ))[0-9a-fA-F]{2,16}\b(?![./])"
)


def normalise(message: str) -> str:
    """``message`` with N for every number, and without the build directory of source paths. xbd0 becomes xbdN."""
    message = message[:_LONGEST]
    for path, start in ((_FREEBSD_PATH, ""), (_LINUX_RELATIVE, ""), (_RELATIVE, "sys/"), (_OTHER_PATH, ""), (_LINUX_PATH, "")):
        message = path.sub(start, message)
    message = _ANNOUNCED.sub(r"\1N", message)
    return re.sub(r"\s+", " ", _NUMBER.sub("N", message)).strip()
