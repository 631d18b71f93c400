# SPDX-License-Identifier: BSD-2-Clause
"""Building FreeBSD from source, the pure parts: kernel configurations, missing sources, link errors, compilers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import BuildError, UsageError
from harness.images import buildworld, conffiles, hosttools, includes, kernconf, linkhint, preflight, src_conf, srctree, treescan
from harness.images.hosttools import Compiler

DATA = Path(__file__).parent / "data"
RELEASES = sorted(path.stem.removeprefix("generic-") for path in DATA.glob("generic-*.json"))


def tree_with(top: Path, files: dict[str, str]) -> srctree.SourceTree:
    """A source tree of FreeBSD 15.1 with ``files`` and the files that identify a tree."""
    base = {
        "Makefile.inc1": "", "tools/build/make.py": "", "sys/sys/param.h": "#define __FreeBSD_version 1501000\n", "sys/conf/newvers.sh": 'REVISION="15.1"\nBRANCH="RELEASE"\n',
        "sys/amd64/conf/GENERIC": "device xenpci\n",
    }  # fmt: skip
    for name, text in {**base, **files}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return srctree.find(top)


# -- the trimmed kernel -----------------------------------------------------------------------------------------------


def test_every_supported_release_has_a_recorded_generic() -> None:
    assert RELEASES == ["13.2", "14.2", "15.1"]


@pytest.mark.parametrize("release", RELEASES)
def test_trimming_drops_nothing_that_a_xen_guest_needs(release: str, tmp_path: Path) -> None:
    """``needs`` was recorded from the symbols of a linked kernel (record_generic.py)."""
    recorded = json.loads((DATA / f"generic-{release}.json").read_text())
    generic = "".join(
        [*(f"device\t\t{name}\n" for name in recorded["devices"]), *(f"options \t{name}\n" for name in recorded["options"])]
    )
    tree = tree_with(tmp_path, {"sys/amd64/conf/GENERIC": generic})
    configuration = kernconf.load(tree, "XENA")
    kept = conffiles.names(tree, "XENA", dict(configuration.files))
    assert {name for names in recorded["needs"].values() for name in names} - kept == set()
    assert {"xenhvm", "xenpci"} <= set(recorded["needs"]["xen"])
    # The list is effective: it drops more than half of the devices.
    assert len(kept & {name.lower() for name in recorded["devices"]}) < len(recorded["devices"]) / 2


def test_trimming_keeps_unknown_names(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, {"sys/amd64/conf/GENERIC": "device\tmpr\ndevice\txenfuture\noptions\tNFSD\noptions\tFUTURE\n"})
    names = conffiles.names(tree, "XENREL", dict(kernconf.load(tree, "XENREL").files))
    assert {"xenfuture", "future"} <= names
    assert not {"mpr", "nfsd"} & names


@pytest.mark.parametrize(("name", "options"), [
    ("XENDEBUG", {"invariants", "invariant_support", "witness", "witness_skipspin", "deadlkres", "ddb"}),
    ("XENZFS", {"zfs", "zstdio", "xdr", "ddb"}),
])  # fmt: skip
def test_kernels_that_extend_xena(name: str, options: set[str], tmp_path: Path) -> None:
    tree = tree_with(tmp_path, {})
    assert options <= conffiles.names(tree, name, dict(kernconf.load(tree, name).files))
    assert not (options - {"ddb"}) & conffiles.names(tree, "XENA", dict(kernconf.load(tree, "XENA").files))


# -- world options ----------------------------------------------------------------------------------------------------

OPTS = "__DEFAULT_YES_OPTIONS = \\\n    ACCT \\\n    FUTURE \\\n    NETLINK \\\n    ZFS\n"


@pytest.mark.parametrize(("preset", "off"), [("small", ["ACCT", "ZFS"]), ("zfs", ["ACCT"]), ("full", [])])
def test_a_world_keeps_unknown_options(preset: str, off: list[str], tmp_path: Path) -> None:
    tree = tree_with(tmp_path, {"share/mk/src.opts.mk": OPTS, "usr.sbin/makefs/zfs.c": "int zfs;\n"})
    text = src_conf.preset(tree, preset).src_conf
    assert text.splitlines() == ["WITHOUT_WERROR=yes", *(f"WITHOUT_{name}=yes" for name in off)]


@pytest.mark.parametrize(("preset", "words"), [("tiny", "world 'tiny'"), ("zfs", "makefs of FreeBSD 15.1 cannot write ZFS")])
def test_invalid_worlds(preset: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        src_conf.preset(tree_with(tmp_path, {}), preset)


def test_makefs_comes_with_the_bootstrap_tools_where_the_tree_can(tmp_path: Path) -> None:
    old, new = (
        tree_with(tmp_path / "13", {}),
        tree_with(tmp_path / "15", {"Makefile.inc1": ".if ${MK_DISK_IMAGE_TOOLS_BOOTSTRAP}\n"}),
    )
    assert src_conf.makefs_knob(old) == ""
    assert "WITH_DISK_IMAGE_TOOLS_BOOTSTRAP=yes" in src_conf.preset(new, "full").src_conf


# -- config(8)'s lists ------------------------------------------------------------------------------------------------

FILES = """\
# a comment
dev/xen/timer/xen_timer.c	optional xenhvm xentimer
dev/uart/uart_bus_acpi.c	optional uart acpi | uart fdt
crypto/sha2/sha512c.c		optional crypto | zfs | !random_loadable
kern/kern_exec.c		standard
miidevs.h			optional miibus | mii			   \\
	dependency	"$S/tools/miidevs2h.awk $S/dev/mii/miidevs" \\
	compile-with	"${AWK} -f $S/tools/miidevs2h.awk | cat" \\
	no-obj no-implicit-rule before-depend
hptmvraid.o			optional hptmv				\\
	dependency	"$S/dev/hptmv/$M-elf.hptmvraid.o"		\\
	no-implicit-rule
"""


def test_lists_of_kernel_sources() -> None:
    timer, uart, sha, exec_, mii, hpt = conffiles.parse(FILES)
    assert timer.alternatives == (("xenhvm", "xentimer"),)
    assert timer.lacking(frozenset({"xenhvm"})) == ("xentimer",)
    assert [uart.selected(frozenset(names)) for names in ({"uart"}, {"uart", "fdt"})] == [False, True]
    assert sha.selected(frozenset())
    assert not sha.selected(frozenset({"random_loadable"}))
    assert exec_.selected(frozenset())
    assert mii.generated
    assert mii.dependencies == ("tools/miidevs2h.awk", "dev/mii/miidevs")
    assert hpt.dependencies == ("dev/hptmv/amd64-elf.hptmvraid.o",)


def test_names_of_a_configuration_with_includes(tmp_path: Path) -> None:
    tree = tree_with(
        tmp_path,
        {
            "sys/amd64/conf/GENERIC": 'include "std.base"\noptions  SCSI_DELAY=5000 # ms\ndevice uart\n',
            "sys/conf/std.base": "options INET\ndevices loop,ether\n",
        },
    )
    ours = {"MINE": "include GENERIC\nnodevice uart\nnooptions INET\nmakeoptions DEBUG=-g\n"}
    assert conffiles.names(tree, "MINE", ours) == {"scsi_delay", "loop", "ether"}


def test_a_configuration_that_includes_itself_ends(tmp_path: Path) -> None:
    assert conffiles.names(tree_with(tmp_path, {}), "A", {"A": "include A\ndevice md\n"}) == {"md"}


# -- missing sources --------------------------------------------------------------------------------------------------


def test_a_kernel_source_that_the_tree_lacks(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, {"sys/conf/files": "kern/here.c standard\nkern/gone.c standard\ndev/x.c optional xenpci\n",
                                "sys/kern/here.c": "", "sys/amd64/conf/MINE": "device xenpci\n"})  # fmt: skip
    missing = preflight.missing_of_kernel(tree, kernconf.load(tree, "MINE"))
    assert missing == {"sys/dev/x.c", "sys/kern/gone.c"}
    text = r"lacks 3 sources\nkernel MINE needs:\n  sys/dev/x.c\n  sys/kern/gone.c\nworld needs:\n  COPYRIGHT\n"
    with pytest.raises(BuildError, match=text):
        preflight.refuse(tree, {"kernel MINE": missing, "world": {"COPYRIGHT"}})
    preflight.refuse(tree, {"kernel MINE": set()})


HEADERS = {
    "sys/conf/files": "kern/here.c standard\n",
    "sys/amd64/conf/MINE": "device xen\n",
    "sys/kern/here.c": """\
#include "opt_xen.h"
#include <sys/opt_kern.h>
#include <sys/queue.h>   /* not <sys/gone_comment.h> */
/*
#include <sys/comment.h>
 */
#ifdef __arm__
#include <sys/conditional.h>
#endif
#include <xen/gone.h>
#include <xen/elsewhere.h>
#include <machine/gone_machine.h>
#include <x86/here.h>
#include <nowhere/unknown.h>
#include "local.h"
#include <sys/bus_if.h>
#include "../dev/gone_relative.h"
""",
    "sys/sys/queue.h": "#ifndef _P_\n#define _P_\n#include <sys/gone_nested.h>\n#endif\n",
    "sys/xen/other.h": "",
    "sys/contrib/xen/elsewhere.h": "",
    "sys/amd64/include/other.h": "",
    "sys/x86/include/here.h": "#pragma once\n#include <x86/gone_x86.h>\n",
}


def test_headers_that_the_tree_lacks(tmp_path: Path) -> None:
    """Also those that headers include; no generated ones, none under an #if, and none whose place is not certain."""
    tree = tree_with(tmp_path, HEADERS)
    conf = kernconf.load(tree, "MINE")
    assert preflight.missing_of_kernel(tree, conf) == {
        "sys/xen/gone.h",
        "sys/amd64/include/gone_machine.h",
        "sys/dev/gone_relative.h",
        "sys/sys/gone_nested.h",
        "sys/x86/include/gone_x86.h",
    }
    assert preflight.missing_of_kernel(tree, conf, headers=False) == set()


@pytest.mark.parametrize(
    ("text", "header", "found"),
    [
        ('const char *glob = "/dev/*";\n#ifdef A\n#include "../a.h"\n#endif /* A */\n#include "../b.h"\n', False, ["../b.h"]),
        ("// all of sys/*\n#ifdef A\n#include <sys/a.h>\n#endif\n#include <sys/b.h> /* b */\n", False, ["sys/b.h"]),
        ("#ifndef H\n#define H\n#include <sys/a.h>\n#endif\n#include <sys/b.h>\n", True, ["sys/a.h"]),
        ("#ifndef KLD\n#define KLD\n#include <sys/a.h>\n#endif\n#include <sys/b.h>\n", False, ["sys/b.h"]),
        ("#ifndef H\n#define H\n#else\n#include <sys/a.h>\n#endif\n", True, []),
        ("#if A\n#include <sys/a.h>\n#else\n#include <sys/b.h>\n#endif\n#include <sys/c.h>\n", False, ["sys/c.h"]),
        ("#endif\n#include <sys/a.h>\n", False, []),
        ("#include <sys/a.h>\n/* " * 20_000, False, ["sys/a.h"]),
    ],
    ids=["string", "line comment", "guard", "no guard in a source", "else of a guard", "else", "not understood", "open comments"],
)
def test_includes_that_depend_on_no_if(text: str, header: bool, found: list[str]) -> None:
    assert [name for _, name in includes.unconditional(text, header=header)] == found


def test_headers_that_a_directory_of_i_has(tmp_path: Path) -> None:
    """-I$S/contrib/my/src finds "../include/my.h" in $S/contrib/my/include."""
    tree = tree_with(tmp_path, {"sys/dev/my/c.c": '#include "../include/my.h"\n', "sys/contrib/my/include/my.h": ""})
    assert includes.absent(tree.path, ["sys/dev/my/c.c"], kernel=True) == set()


def test_headers_of_a_world_that_the_tree_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libkvm reads headers of other architectures, which uploads of a kernel leave out; a directory may have lost its Makefile."""
    tree = tree_with(
        tmp_path,
        {
            "lib/libkvm/kvm_arm.c": '#include <sys/any.h>\n#include "kvm_arm.h"\n',
            "lib/libkvm/kvm_arm.h": '#include "../../sys/arm/include/vmparam.h"\n',
            "lib/libc/a": "",
        },
    )
    # As make prints it: a source of the directory has no path.
    command = f"===> libkvm (all)\ncc -I{tree.path}/include -c kvm_arm.c -o kvm_arm.o\n===> libc (all)\n"
    (tree.path / "lib/libkvm/Makefile").touch()
    monkeypatch.setattr(preflight, "_subdirs", lambda *_: ["lib"])
    monkeypatch.setattr(preflight, "_make", lambda *_: command)
    missing = preflight.missing_of_world(tree, Compiler(None, "clang version 19.1.7"), tmp_path / "src.conf")
    assert missing == {"sys/arm/include/vmparam.h", "lib/libc/Makefile"}


DRY_RUN = """\
===> libsqlite3 (all)
bmake[1]: don't know how to make sqlite3.c (continuing)
bmake[1]: don't know how to make sqlite3.h (continuing)
===> libpam/static_libpam (all)
bmake[2]: don't know how to make ../modules/pam_unix/libpam_unix.a (continuing)
bmake[2]: don't know how to make /obj/usr/src/lib/libc/libc_pic.a (continuing)
===> libfoo (all)
cc -I{top}/lib/nowhere -c {top}/lib/libfoo/made_here.c -o made_here.o
localedef -f {top}/tools/final-maps/map.UTF-8 -i {top}/share/here.src C.UTF-8
for i in *; do cp {top}/include/$i.h x; done
sh: 1: cd: can't cd to {top}/lib/id
"""


def test_missing_sources_in_a_dry_run(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, {"share/here.src": ""})
    output = DRY_RUN.replace("{top}", str(tree.path)).replace("map.UTF-8", "map.src")
    assert preflight.absent(output, tree.path, "lib") == {"sqlite3.c, for lib/libsqlite3", "tools/final-maps/map.src", "lib/id"}


def test_files_that_no_makefile_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads often lose dot files: the build of 15 fails without .clean_build_epoch after minutes."""
    files = {"tools/build/depend-cleanup.sh": "extract_epoch $SRCTOP/.clean_build_epoch\n", "etc/Makefile": "FREEBSD=COPYRIGHT\n"}
    monkeypatch.setattr(preflight, "_subdirs", lambda *_: ["bin"])
    monkeypatch.setattr(preflight, "_make", lambda *_: "")
    missing = preflight.missing_of_world(tree_with(tmp_path, files), Compiler(None, "clang version 19.1.7"), tmp_path / "src.conf")
    assert missing == {".clean_build_epoch", "COPYRIGHT", "bin"}


# -- link errors ------------------------------------------------------------------------------------------------------


def test_a_link_error_names_the_device_or_option_to_keep(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, {
        "sys/conf/files": "dev/xen/timer/xen_timer.c optional xenhvm xentimer\ncrypto/sha2/sha512c.c optional crypto | zfs\n"
                          "kern/kern_racct.c optional racct\n",
        "sys/conf/options": "RACCT\t\topt_global.h\nZFS\t\n",
        "sys/dev/xen/timer/xen_timer.c": "void\nxen_clock_init(void)\n{\n}\n",
        "sys/crypto/sha2/sha512c.c": "void\nSHA512_Init(SHA512_CTX *ctx)\n{\n}\n",
        "sys/kern/kern_racct.c": "extern int racct_enable;\nint racct_enable = 1;\n",
    })  # fmt: skip
    log = "".join(f"ld: error: undefined symbol: {name}\n>>> referenced by pv.c\n" for name in ("xen_clock_init", "_libmd_SHA512_Init", "racct_enable", "unknown"))  # fmt: skip
    assert linkhint.explain(log, tree, frozenset({"xenhvm"})) == [
        "xen_clock_init is defined in sys/dev/xen/timer/xen_timer.c: keep `device xentimer`",
        "_libmd_SHA512_Init is defined in sys/crypto/sha2/sha512c.c: keep `device crypto`",
        "racct_enable is defined in sys/kern/kern_racct.c: keep `options RACCT`",
    ]
    assert linkhint.explain("ld: error: duplicate symbol: x\n", tree, frozenset()) == []


# -- compilers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("have", "major", "llvm", "chosen"), [
    ((13, 14, 18), 13, 14, 14),
    ((13, 14, 18), 14, 0, 18),
    ((14, 16, 19), 14, 19, 19),
    ((14, 16, 18), 14, 19, 18),
    ((14, 16, 19), 14, 16, 16),
    ((13, 14, 18), 15, 0, 18),
    ((14, 22), 15, 19, 14),
    ((13,), 13, 14, 0),
    ((22,), 15, 19, 0),
    ((22,), 16, 21, 22),
    ((), 15, 19, 0),
])  # fmt: skip
def test_which_llvm(have: tuple[int, ...], major: int, llvm: int, chosen: int) -> None:
    assert hosttools.choose({number: Path(f"/llvm-{number}") for number in have}, major, llvm) == chosen


def test_a_compiler_too_old_for_the_libcxx_of_the_tree() -> None:
    bindir = Path("/llvm/bin")
    hosttools.check_world(Compiler(bindir, "clang version 17.0.6"), "14.2", 19)
    hosttools.check_world(Compiler(bindir, "clang version 14.0.6"), "13.2", 14)
    hosttools.check_world(Compiler(None, "FreeBSD clang version 16.0.6"), "14.2", 19)
    with pytest.raises(BuildError, match=r"clang 16 cannot build the world of FreeBSD 14\.2: its libc\+\+ of LLVM 19") as caught:
        hosttools.check_world(Compiler(bindir, "clang version 16.0.6"), "14.2", 19)
    assert "clang-19 lld-19" in caught.value.hint


def test_the_llvm_of_a_tree(tmp_path: Path) -> None:
    name = "lib/clang/include/clang/Basic/Version.inc"
    said = '#define\tCLANG_VERSION\t\t19.1.7\n#define\tCLANG_VERSION_MAJOR\t\t19\n#define\tCLANG_VERSION_MAJOR_STRING\t"19"\n'
    tree = tree_with(tmp_path, {"sys/conf/newvers.sh": 'REVISION="14.2"\nBRANCH="STABLE"\n', name: said})
    assert tree.llvm == 19
    (tmp_path / name).unlink()
    assert tree.llvm == 0


@pytest.mark.parametrize(
    ("installed", "words"), [(13, "clang 13 cannot build FreeBSD 15: it needs 14 to 21"), (22, "clang 22 cannot")]
)
def test_a_compiler_that_does_not_fit_the_tree(installed: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosttools.sys, "platform", "linux")
    monkeypatch.setattr(hosttools.debian, "lacking", lambda *_: [])
    monkeypatch.setattr(hosttools.debian, "llvms", lambda *_: {installed: Path("/llvm")})
    with pytest.raises(BuildError, match=words) as caught:
        hosttools.compiler(15)
    assert "clang-19 lld-19" in caught.value.hint


def test_version_of_a_compiler() -> None:
    assert Compiler(None, "Debian clang version 19.1.7 (3~deb12u1)").major == 19
    assert Compiler(None, "gcc 12").major == 0


def test_a_tree_newer_than_every_known_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree_with(tmp_path, {"sys/conf/newvers.sh": 'REVISION="17.0"\nBRANCH="CURRENT"\n'})
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: FreeBSD 17.0 is newer than every release that this harness was tested with (up to 15)"
    ]


# -- scanning a tree --------------------------------------------------------------------------------------------------


def test_both_ways_to_list_a_tree_agree(tmp_path: Path) -> None:
    tree_with(tmp_path, {"bin/a b.c": "x", "contrib/bmake/unit-tests/x.mk": "", "contrib/bmake/unit-tests/x.out": "", ".git/HEAD": "",
                         "contrib/bmake/unit-tests/sub/y": ""})  # fmt: skip
    (tmp_path / "link").symlink_to("bin/a b.c")
    (tmp_path / "bin/a b.c").chmod(0o755)
    found = treescan.scan(tmp_path)
    walked = treescan.Scan(tmp_path, b"".join(treescan._walked(str(tmp_path))))
    rows = [sorted((row.name, row.executable, row.link) for row in map(treescan.parse, scan.records)) for scan in (found, walked)]
    assert rows[0] == rows[1]
    assert not [name for name, _, _ in rows[0] if name.startswith(".git")]
    one, other = (treescan.identity(scan, tmp_path.parent / f"{tmp_path.name}-{n}") for n, scan in enumerate((found, walked)))
    assert one == other


def test_identity_is_of_content_modes_and_links_alone(tmp_path: Path) -> None:
    index = tmp_path / "index"
    top = tree_with(tmp_path / "src", {"bin/a.c": "x"}).path

    def identity() -> dict[str, str]:
        """The identity from the index, after a comparison with one from an empty index."""
        found = treescan.identity(treescan.scan(top), index)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        assert found == treescan.identity(treescan.scan(top), tmp_path / "new")
        return found

    first = identity()
    os.utime(top / "bin/a.c", (1, 1))
    assert identity() == first
    (top / "contrib/bmake/unit-tests").mkdir(parents=True)
    (top / "contrib/bmake/unit-tests/made.out").write_text("by bmake's own tests")
    assert identity() == first
    (top / "bin/a.c").chmod(0o755)
    second = identity()
    assert (second["sys"], second["rest"] != first["rest"]) == (first["sys"], True)
    (top / "bin/b.c").write_text("y")
    (top / "bin/a.c").unlink()
    third = identity()
    assert third["rest"] not in (first["rest"], second["rest"])
    (top / "bin/b.c").write_text("z")
    assert identity()["rest"] != third["rest"]
    for name in ("listing", "rest", "identity"):
        (index / name).write_bytes(b"damaged")
        (top / "bin/b.c").write_text(name)
        identity()


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists() or os.geteuid() != 0,
    reason="needs root, and a kernel with autogroups (it limits the rate of others)",
)
def test_a_build_gives_way_to_other_sessions() -> None:
    argv = ["cat", "/proc/self/autogroup"]
    said = subprocess.run(
        argv, capture_output=True, text=True, check=True, start_new_session=True, preexec_fn=buildworld._set_up_child
    ).stdout
    # /autogroup-97 nice 10
    assert said.split()[1:] == ["nice", "10"]
