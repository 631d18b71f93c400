# SPDX-License-Identifier: BSD-2-Clause
"""The pure functions of images: texts in, values out."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from harness import paths
from harness.errors import BuildError, UsageError
from harness.images import (
    build_log,
    buildworld,
    dist,
    hosttools,
    kernconf,
    kernelfile,
    layout,
    loader_conf_slot,
    makefs,
    metalog,
    overlay_files,
    recipe,
    sources,
    src_conf,
    srctree,
    treescan,
)
from harness.images.inputs import key_of
from harness.images.kernelfile import KernelFile
from harness.images.progress import Progress
from harness.xen import elfnotes

# -- source trees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('TYPE="FreeBSD"\nREVISION="13.2"\nBRANCH="RELEASE"\n', ("13.2", "RELEASE")),
        ('REVISION="15.0"\nBRANCH="CURRENT"\nif [ -n "${BRANCH_OVERRIDE}" ]; then\n', ("15.0", "CURRENT")),
        ('REVISION="10.4"\nBRANCH=${BRANCH_OVERRIDE:-RELEASE-p3}\n', ("10.4", "RELEASE-p3")),
        ("nothing of it", ("", "")),
    ],
)
def test_version_of_a_tree(text: str, expected: tuple[str, str]) -> None:
    assert srctree.parse_version(text) == expected


def make_tree(top: Path, *, revision: str = 'REVISION="13.2"\nBRANCH="RELEASE"\n', make_py: bool = True) -> Path:
    files = {
        "Makefile.inc1": "",
        "sys/conf/newvers.sh": revision,
        "sys/amd64/conf/GENERIC": "device\tacpi\ndevice\tahci\n",
        "sys/sys/param.h": "#define __FreeBSD_version 1302001\n",
    }
    if make_py:
        files["tools/build/make.py"] = ""
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def test_not_a_source_tree(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a FreeBSD source tree: it has no Makefile\.inc1"):
        srctree.find(tmp_path)


@pytest.mark.parametrize("name", ["my src", "it's", "a:b", "a#b", "a$b", "a(b"])
def test_a_path_that_makefiles_cannot_use(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"""cannot use a path with ('[ :#$(]'|"'") in it""") as caught:
        srctree.find(make_tree(tmp_path / name))
    assert "rename the directory" in caught.value.hint


def test_a_tree_without_its_number(tmp_path: Path) -> None:
    param = make_tree(tmp_path) / "sys/sys/param.h"
    param.write_text("#define __FreeBSD_kernel\n")
    with pytest.raises(UsageError, match=r"param\.h does not define __FreeBSD_version"):
        srctree.find(tmp_path)
    param.unlink()
    with pytest.raises(UsageError, match=r"param\.h is missing"):
        srctree.find(tmp_path)


def test_a_revision_that_is_no_number_of_a_release(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no REVISION"):
        srctree.find(make_tree(tmp_path, revision=f'REVISION="{"9" * 5000}.1"\n'))


def test_a_pipe_in_a_tree_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = make_tree(tmp_path / "src")
    scanned = treescan.scan(top)
    os.mkfifo(top / "sys/pipe")
    assert treescan.scan(top).records == scanned.records
    monkeypatch.setattr("sys.platform", "other")
    assert sorted(treescan.parse(record).name for record in treescan.scan(top).records) == sorted(
        treescan.parse(record).name for record in scanned.records
    )


def test_a_tree_of_unknown_version(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown version"):
        srctree.find(make_tree(tmp_path, revision="hello\n"))


def test_a_tree_too_old_for_this_system(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"FreeBSD 9.3 cannot be built on"):
        srctree.find(make_tree(tmp_path, revision='REVISION="9.3"\n', make_py=False))


def test_a_restored_old_source_forces_a_full_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A source that was restored with its old time (cp -p): its object is younger and has another content."""
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    tree = srctree.find(make_tree(tmp_path / "src"))
    monkeypatch.setitem(buildworld._NEEDED, "small", 0)

    def built() -> bool:
        build = buildworld.BuildDirectory(tree, hosttools.Compiler(None, "clang 14"), "", "small", 1, treescan.scan(tree.path))
        with build.open():
            found = (build.directory / "obj/kernel.o").exists()
            (build.directory / "obj/kernel.o").touch()
        return found

    source = tmp_path / "src/sys/amd64/conf/GENERIC"
    assert [built(), built()] == [False, True]
    source.write_text("device\tahci\n")
    assert built(), "an edited source is make's own matter"
    os.utime(source, (1, 1))
    assert not built()
    assert "sys/amd64/conf/GENERIC was restored with an older time" in caplog.text
    assert built()


def test_identity_separates_sys_from_the_rest_and_ignores_times(tmp_path: Path) -> None:
    tree = srctree.find(make_tree(tmp_path / "src"))
    index = tmp_path / "index"

    def identity() -> dict[str, str]:
        return treescan.identity(treescan.scan(tree.path), index)

    first = identity()

    (tree.path / "sys/conf/newvers.sh").touch()
    assert identity() == first

    (tree.path / "sys/amd64/conf/GENERIC").write_text("device\tacpi\n")
    second = identity()
    assert second["sys"] != first["sys"]
    assert second["rest"] == first["rest"]

    (tree.path / "new").write_text("")
    assert identity()["rest"] != first["rest"]


def test_a_tree_whose_files_all_have_new_times_is_not_edited_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a tree: each replaced line costs a copy of all lines, which took a quarter of an hour for FreeBSD."""
    tree = srctree.find(make_tree(tmp_path / "src"))
    for number in range(200):
        (tree.path / f"file{number}").write_text(str(number))
    first = treescan.identity(treescan.scan(tree.path), tmp_path / "index")

    for file in tree.path.rglob("*"):
        os.utime(file, (1, 1), follow_symlinks=False)
    replaced: list[bytes] = []
    monkeypatch.setattr(treescan, "_replace_line", lambda text, name, _: replaced.append(name) or text)
    assert treescan.identity(treescan.scan(tree.path), tmp_path / "index") == first
    assert replaced == []


def test_an_edited_driver_builds_a_kernel_but_no_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(hosttools, "compiler", lambda *_: hosttools.Compiler(None, "clang 14"))
    top = make_tree(tmp_path / "src")
    (top / "sys/dev/xen").mkdir(parents=True)

    def keys() -> tuple[str, str]:
        source = sources.FromSource(top, "small")
        return key_of(*source.kernel_inputs("GENERIC")), key_of(*source.world_inputs())

    (top / "sys/dev/xen/blkfront.c").write_text("int a;\n")
    kernel, world = keys()

    (top / "sys/dev/xen/blkfront.c").write_text("int b;\n")
    assert keys() == (changed := keys()[0], world)
    assert changed != kernel

    (top / "sys/dev/xen/blkfront.h").write_text("extern int b;\n")
    assert keys()[0] != changed
    assert keys()[1] != world


def test_a_world_that_reads_a_driver_is_built_again_when_the_driver_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(hosttools, "compiler", lambda *_: hosttools.Compiler(None, "clang 14"))
    monkeypatch.setattr(buildworld.BuildDirectory, "make", lambda *_, **__: None)
    top = make_tree(tmp_path / "src")
    for name in ("xen/parser.c", "xen/blkfront/blkfront.c"):
        (top / "sys/dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "sys/dev" / name).write_text("int a;\n")
    source = sources.FromSource(top, "small")
    build = source.build_directory
    for directory, name in (("lib/libxen", "xen/parser.c"), ("sys/XENA", "xen/blkfront/blkfront.c")):
        (build.objects / directory).mkdir(parents=True)
        rule = f"x.o: \\\n  {top}/{directory}/x.c \\\n  {top}/lib/libxen/../../sys/dev/{name} \\\n  {top}/sys/sys/param.h\n"
        (build.objects / directory / ".depend.x.o").write_text(rule)
    build.world(tmp_path / "destination")
    assert build.kernel_sources_of_world() == ["sys/dev/xen/parser.c"]

    before = source.world_inputs()
    (top / "sys/dev/xen/blkfront/blkfront.c").write_text("int b;\n")
    assert source.world_inputs() == before
    (top / "sys/dev/xen/parser.c").write_text("int b;\n")
    assert source.world_inputs() != before


# -- kernel configurations and knobs ----------------------------------------------------------------------------------

GENERIC = """
cpu		HAMMER
options 	SCHED_ULE		# ULE scheduler
options 	SCSI_DELAY=5000		# Delay (in ms) before probing SCSI
options 	NFSCL			# Network Filesystem Client
device		acpi
device		ahci			# AHCI-compatible SATA controllers
device		mpr			# LSI-Logic MPT-Fusion 3
device		mpr
"""


def test_trim_makes_lines_only_for_what_generic_has() -> None:
    text = kernconf.trim(GENERIC, frozenset({"ahci", "mpr", "gone"}), frozenset({"NFSCL", "GONE"}), ("device pf",))
    assert text.splitlines()[1:] == ["nodevice\tahci", "nodevice\tmpr", "nooptions\tNFSCL", "device pf"]


def test_our_kernels_differ_in_their_ident_only(tmp_path: Path) -> None:
    ours = kernconf.shipped()
    a, b = (ours[name].read_text() for name in ("XENA", "XENB"))
    assert a != b
    assert a.replace("ident\t\tXENA", "") == b.replace("ident\t\tXENB", "")
    tree = srctree.find(make_tree(tmp_path))
    files = dict(kernconf.load(tree, "XENREL").files)
    assert sorted(files) == ["TRIM", "XENCOMMON", "XENREL"]
    assert "nodevice\tahci" not in files["TRIM"]
    assert "DDB" not in files["XENREL"].replace("DDB look", "").partition("include")[2]


def test_an_unknown_kernel_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kernel configuration NOSUCH"):
        kernconf.load(srctree.find(make_tree(tmp_path)), "NOSUCH")


def test_a_users_own_kernel_configuration(tmp_path: Path) -> None:
    tree = srctree.find(make_tree(tmp_path / "src"))
    mine = tmp_path / "MINE"
    mine.write_text("include XENCOMMON\nident MINE\n")
    conf = kernconf.load(tree, str(mine))
    assert (conf.name, sorted(dict(conf.files))) == ("MINE", ["MINE", "TRIM", "XENCOMMON"])


OPTS = """
__DEFAULT_YES_OPTIONS = \\
    ACCT \\
    BOOT \\
    ZFS

__DEFAULT_NO_OPTIONS = \\
    BHYVE_SNAPSHOT
__DEFAULT_YES_OPTIONS+=	LIB32
__DEFAULT_YES_OPTIONS+=	LLVM_TARGET_${__llt:tu}
"""


def test_small_world_switches_off_what_is_on_by_default() -> None:
    options = src_conf.default_yes(OPTS)
    assert options == ("ACCT", "BOOT", "ZFS", "LIB32")
    assert src_conf.small(options, frozenset({"ACCT", "LIB32", "GONE"})) == "WITHOUT_ACCT=yes\nWITHOUT_LIB32=yes\n"


# -- why a build failed -----------------------------------------------------------------------------------------------

COMPILE = """\
--- subr_log.o ---
/usr/lib/llvm-14/bin/clang -c -O2 -Wno-error=tautological-compare /usr/src/sys/kern/subr_log.c
--- kern_sx.o ---
/usr/lib/llvm-14/bin/clang -c -O2 /usr/src/sys/kern/kern_sx.c
--- subr_log.o ---
/usr/src/sys/kern/subr_log.c:81:2: error: use of undeclared identifier 'nosuch'
        nosuch = 1;
        ^
1 error generated.
*** [subr_log.o] Error code 1

bmake[2]: stopped in /obj/usr/src/amd64.amd64/sys/XENA
--- kern_sx.o ---
*** [kern_sx.o] Error code 6
bmake[2]: stopped in /obj/usr/src/amd64.amd64/sys/XENA
bmake[1]: stopped in /usr/src
"""


def test_the_cause_of_a_failed_compile_is_the_compilers_error() -> None:
    assert build_log.causes(COMPILE) == [
        "/usr/src/sys/kern/subr_log.c:81:2: error: use of undeclared identifier 'nosuch'",
        "        nosuch = 1;",
        "        ^",
        "*** [subr_log.o] Error code 1",
    ]


def test_an_option_that_the_compiler_does_not_know() -> None:
    said = "error: invalid value 'c++23' in '-std=c++23'"
    log = f"--- algorithm.o ---\n{said}\n--- bind.o ---\nbmake[4]: working\n*** [algorithm.o] Error code 1\n"
    assert build_log.causes(log)[0] == said


@pytest.mark.parametrize(
    "line",
    [
        "bmake[2]: bmake[2]: don't know how to make /usr/src/contrib/sqlite3/sqlite3.c. Stop",
        'config: Error: device "nosuch" is unknown',
        "config: /usr/src/sys/amd64/conf/XENA:11: syntax error",
        '/usr/src/sys/amd64/conf/XENA: unknown option "NOSUCH"',
        'bmake[1]: "/usr/src/Makefile.inc1" line 1648: Missing KERNCONF /usr/src/sys/amd64/conf/NONE',
        "Cannot find host tool 'xz' in PATH",
        "Failed tests: deptgt-interrupt",
    ],
)
def test_failures_without_a_line_of_stars(line: str) -> None:
    assert build_log.causes(f"cc -Wno-error=x y.c\n{line}\nbmake[1]: stopped in /usr/src\n") == [line]


def test_a_log_without_a_cause() -> None:
    assert build_log.causes("clang -Wno-error=x\nall is well\n") == []


def test_progress_names_the_target() -> None:
    progress = Progress("world")
    for line in (">>> stage 4.2: building libraries", "===> lib/libc (obj,all,install)", "--- printf.pico ---", "x ===> no"):
        progress.line(line)
    assert str(progress).startswith("world: stage 4.2: building libraries, lib/libc (obj,all,install), 1 objects, ")


# -- METALOG ----------------------------------------------------------------------------------------------------------

METALOG = """#mtree 2.0
. type=dir uname=root gname=wheel mode=0755
./etc type=dir uname=root gname=wheel mode=0755
./etc/master.passwd type=file uname=root gname=wheel mode=0600 size=1 tags=package=runtime
./etc/master.passwd type=file uname=root gname=wheel mode=0600 size=2
./bin/a\\040b type=file uname=root gname=wheel mode=04555
./usr type=dir uname=root gname=wheel mode=0755
./usr/tests type=dir uname=root gname=wheel mode=0755
./usr/tests/x type=file uname=root gname=wheel mode=0444
./usr/bin/vi type=file uname=root gname=wheel mode=0555
./sys type=link uname=root gname=wheel mode=0755 link=usr/src/sys
"""


def test_metalog_the_last_line_counts_and_sizes_are_dropped() -> None:
    tree = metalog.parse(METALOG, Path("/d"))
    assert dict(tree["./etc/master.passwd"].attributes) == {"type": "file", "uname": "root", "gname": "wheel", "mode": "0600"}
    assert tree["./bin/a\\040b"].contents == Path("/d/bin/a b")
    assert tree["./sys"].contents is None
    assert "./sys type=link uname=root gname=wheel mode=0755 link=usr/src/sys" in metalog.render(tree)


def test_metalog_damaged() -> None:
    with pytest.raises(BuildError, match="METALOG, line 2"):
        metalog.parse("#mtree 2.0\n./etc type", Path("/d"))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("./a/../../evil type=file", r"has a path that has \.\. in it"),
        ("./a/\\056\\056/evil type=file", r"has a path that has \.\. in it"),
        ("../evil type=file", "describes no file"),
        ("./a\\000b type=file", "has a NUL"),
        ("./l type=link", "describes no file"),
        (f"./{'n' * 256} type=file", "is longer than 255 bytes"),
        ("./out type=link link=/tmp\n./out/evil type=file", r"\./out is a link, and evil is below it"),
        ("./out/evil type=file\n./out type=link link=/tmp", r"\./out is a link, and evil is below it"),
        (". type=link link=/tmp", "the top of the tree is a link"),
    ],
)
def test_a_metalog_stays_inside_its_tree(lines: str, says: str) -> None:
    with pytest.raises(BuildError, match=f"^METALOG.*{says}"):
        metalog.parse(lines, Path("/d"))


def test_no_file_is_put_in_below_a_link() -> None:
    tree = metalog.parse("./etc type=link link=/tmp", Path("/d"))
    with pytest.raises(BuildError, match=r"\./etc is a link, and fstab is below it"):
        metalog.add_file(tree, "./etc/fstab", Path("/new"))


@pytest.mark.parametrize("more", ["", "./out type=dir\n"])
def test_nothing_is_staged_through_a_link_that_has_two_spellings(more: str, tmp_path: Path) -> None:
    outside, contents = tmp_path / "outside", tmp_path / "in"
    outside.mkdir()
    (contents / "out").mkdir(parents=True)
    (contents / "out/evil").write_text("x")
    tree = metalog.parse(f"./\\157ut type=link link={outside}\n{more}./out/evil type=file\n", contents)
    with pytest.raises(BuildError, match=r"^METALOG: \./out.* is below a link, or has its name"):
        makefs._stage(tree, tmp_path / "staged")
    assert not list(outside.iterdir())


def test_paths_of_a_metalog_in_octal() -> None:
    # vis(3) writes three octal digits; anything else stays.
    assert metalog.unvis("./a\\040b\\134\\303\\251") == "./a b\\é"
    assert metalog.unvis("./a\\999\\48\\") == "./a\\999\\48\\"


def test_a_file_that_is_put_in_keeps_owner_and_mode() -> None:
    tree = metalog.parse(METALOG, Path("/d"))
    metalog.add_file(tree, "./etc/master.passwd", Path("/new"))
    metalog.add_file(tree, "./boot/kernel/kernel", Path("/k"), "0555")
    assert tree["./etc/master.passwd"].attributes["mode"] == "0600"
    assert tree["./boot/kernel"].type == "dir"
    assert tree["./boot/kernel/kernel"].attributes == {"type": "file", "uname": "root", "gname": "wheel", "mode": "0555"}
    assert "contents=../k\n" in metalog.render(tree, Path("/d"))


def test_file_systems_share_a_tree() -> None:
    tree = metalog.without(metalog.parse(METALOG, Path("/d")), ("usr/tests",))
    root = metalog.subtree(tree, "/", ("/", "/usr"))
    usr = metalog.subtree(tree, "/usr", ("/", "/usr"))
    assert "./usr" in root
    assert "./usr/bin/vi" not in root
    assert sorted(usr) == [".", "./bin/vi"]


# -- layouts and edits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "root", "firmware", "pygrub"),
    [
        ("ufs1", "xbd0", False, True),
        ("ufs2", "xbd0", False, False),
        ("mbr", "xbd0s1a", True, True),
        ("mbr16", "xbd0s1a", True, False),
        ("gpt", "xbd0p2", True, False),
        ("vdevs", "xbd0", False, True),
        ("ext2boot", "xbd1", False, True),
    ],
)
def test_layouts(name: str, root: str, firmware: bool, pygrub: bool) -> None:
    found = layout.load(name)
    assert (found.root, found.firmware, found.pygrub) == (root, firmware, pygrub)
    assert f"/dev/{root}\t/\tufs\trw\t1\t1\n" in overlay_files.fstab(found)
    assert f"ufs:/dev/{root}\n" in overlay_files.menu_lst(found)


def test_layouts_have_no_others() -> None:
    assert set(layout.available()) == {
        "ufs1", "ufs2", "mbr", "mbr16", "gpt", "uefi", "zfs", "vmimage", "vmimage-zfs", "vdevs", "ext2boot",
    }  # fmt: skip
    with pytest.raises(UsageError, match="no layout 'btrfs'"):
        layout.load("btrfs")


def test_layout_sizes() -> None:
    found = layout.load("vdevs", size=100, bsize=8192)
    assert [(fs.size, fs.bsize) for _, _, fs in found.parts] == [(100, 8192), (256, 8192), (64, 32768)]
    with pytest.raises(UsageError, match="UFS blocks of 4096 bytes"):
        layout.load("ufs1", bsize=4096)


@pytest.mark.parametrize(
    ("vdevs", "words"),
    [
        ([{"name": "xvda", "fs": [{"mount": "/usr", "type": "ufs1"}]}], "mounts /usr"),
        ([{"name": "xvda", "fs": [{"mount": "/", "type": "btrfs"}]}], "file system type 'btrfs'"),
        ([{"name": "xvda", "fs": [{"mount": "/", "type": "zfs"}]}], "zfs on xvda, which has no GPT"),
        ([{"name": "xvda", "table": "gpt", "fs": [{"mount": "/", "type": "zfs", "pool": "p"}]}], "give pool and bootfs"),
        ([{"name": "xvda", "table": "gpt", "boot": True, "fs": [{"mount": "/", "type": "ufs1"}]}], "boots from a partition"),
        ([{"name": "xvda", "labels": True, "fs": [{"mount": "/", "type": "ufs1"}]}], "has no GPT"),
        ([{"name": "xvda", "fs": [{"mount": "/", "type": "ufs1"}, {"mount": "/usr", "type": "ufs1"}]}], "has no table"),
        ([{"name": "xvda", "table": "apm", "fs": [{"mount": "/", "type": "ufs1"}]}], "table 'apm'"),
        ([{"fs": [{"mount": "/", "type": "ufs1"}]}], "name"),
    ],
)
def test_invalid_layouts(vdevs: list[dict[str, object]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        layout.parse("x", {"about": "", "vdevs": vdevs})


def test_pygrubs_kernel_is_found_from_the_file_systems_top() -> None:
    assert "kernel /boot/kernel/kernel vfs" in overlay_files.menu_lst(layout.load("ufs1"))
    assert "kernel /kernel/kernel vfs" in overlay_files.menu_lst(layout.load("ext2boot"))


def test_a_world_without_xc0_gets_a_getty() -> None:
    old = 'ttyv0\t"/usr/libexec/getty Pc"\txterm\ton\tsecure\nttyu0\t"/usr/libexec/getty std.9600"\tdialup\toff\tsecure\n'
    new = overlay_files.with_getty(overlay_files.with_getty(old, "xc0", "Pc"), "ttyu0", "std.115200")
    assert new.splitlines()[1:] == [
        'ttyu0\t"/usr/libexec/getty std.115200"\tvt100\ton\tsecure',
        'xc0\t"/usr/libexec/getty Pc"\tvt100\ton\tsecure',
    ]
    today = 'xc0\t"/usr/libexec/getty Pc"\txterm\tonifconsole\tsecure\n'
    assert overlay_files.with_getty(today, "xc0", "Pc") == today


# -- kernel variables of HVM guests -----------------------------------------------------------------------------------


def test_slot_keeps_its_size() -> None:
    text = loader_conf_slot.text({"vfs.root.mountfrom": "ufs:/dev/xbd0"})
    assert len(text) == len(loader_conf_slot.text({})) == loader_conf_slot.SIZE
    assert b'\nvfs.root.mountfrom="ufs:/dev/xbd0"\n#' in text
    assert max(map(len, text.split(b"\n"))) < 80
    with pytest.raises(UsageError, match="cannot express a quote"):
        loader_conf_slot.text({"a": '"'})
    with pytest.raises(UsageError, match="has room for 4096"):
        loader_conf_slot.text({"a": "x" * 5000})


def test_slot_is_found_and_filled(tmp_path: Path) -> None:
    image = tmp_path / "xvda.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
        file.seek((1 << 20) + 12288)
        file.write(loader_conf_slot.text({}))
    at = loader_conf_slot.locate(image)
    assert at == (1 << 20) + 12288

    copy = loader_conf_slot.write_copy(image, at, {"kern.hz": "100"}, tmp_path / "copy")

    assert copy.read_bytes()[at:].startswith(loader_conf_slot.text({"kern.hz": "100"}))
    assert copy.stat().st_size == image.stat().st_size
    assert copy.stat().st_blocks < 1024
    assert loader_conf_slot.locate(image) == at
    with pytest.raises(BuildError, match="not in one piece"):
        loader_conf_slot.locate(copy)


# -- kernels ----------------------------------------------------------------------------------------------------------


def elf(path: Path, *, machine: int = 62, notes: bool = True, text: bytes = b"FreeBSD 13.2-RELEASE XENA\0") -> Path:
    """A small ELF file with a section for Xen's note PHYS32_ENTRY."""
    note = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", 0x1000)
    at = 64 + len(text)
    sections = at + len(note)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 0, sections if notes else 0, 0, 64, 56, 0, 64, 1 if notes else 0, 0
    )  # fmt: skip
    section = struct.pack("<IIQQQQIIQQ", 0, 7, 0, 0, at, len(note), 0, 0, 4, 0)
    path.write_bytes(header + text + note + section)
    return path


def test_read_a_kernel(tmp_path: Path) -> None:
    found = kernelfile.read(elf(tmp_path / "kernel"))
    assert (found.version, found.machine, found.types) == ("13.2", "amd64", ("pvh",))


def test_a_kernel_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a kernel for arm64"):
        kernelfile.read(elf(tmp_path / "kernel", machine=183))


def test_no_kernel_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a FreeBSD kernel"):
        kernelfile.read(elf(tmp_path / "kernel", text=b"Linux version 6.1"))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="not an ELF file"):
        kernelfile.read(tmp_path / "text")


def test_a_stripped_kernel_names_its_guest_types(tmp_path: Path) -> None:
    kernel = kernelfile.read(elf(tmp_path / "kernel", notes=False))
    assert kernel.types == ()
    why = kernelfile.why_not(kernel, False)
    assert "section headers are stripped" in why
    assert "HVM could boot it, from a layout with a loader" in why


def test_a_kernel_with_a_version_of_thousands_of_digits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not name a version"):
        kernelfile.read(elf(tmp_path / "k", text=b"FreeBSD " + b"1" * 5000 + b".1-RELEASE GENERIC\0"))


def test_a_pipe_is_no_kernel(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: not a regular file"):
        kernelfile.read(tmp_path / "pipe")


def test_headers_that_name_one_area_thousands_of_times() -> None:
    # 65535 section headers, which are all the same one: a note section with the rest of the file.
    header = b"\x7fELF\2\1\1".ljust(40, b"\0") + struct.pack("<QI6H", 64, 0, 64, 56, 0, 0, 0xFFFF, 0)
    data = header[:64].ljust(64, b"\0") + struct.pack("<II4Q", 0, 7, 0, 0, 104, 16 << 20) + bytes(16 << 20)
    assert elfnotes.parse(data).guest_types == ()


def test_a_kernel_without_xen_notes() -> None:
    kernel = KernelFile(Path(__file__), "9.3", "amd64", (), "")
    assert "it has no Xen ELF notes: neither PVH nor PV can start it; HVM can boot it" in kernelfile.why_not(kernel, True)


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_each_value_of_a_recipe_has_its_origin() -> None:
    made = recipe.resolve("mine", {"src": "/usr/src", "layout": "gpt", "size": 0}, {"mine": {"about": "x", "kernconf": "XENB"}})
    assert (made.kernconf, made.layout, made.world, made.src) == ("XENB", "gpt", "small", "/usr/src")
    assert dict(made.origins) == {"src": "--src", "layout": "--layout", "kernconf": "recipe mine", "world": "default"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to build from"),
        ({"src": "a", "dist": "b"}, "--src and --dist are two sources"),
        ({"base": "a"}, "--base without a kernel"),
        ({"destdir": "a"}, "--destdir needs a kernel"),
    ],
)
def test_invalid_recipes(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe.resolve("x", options, {})


def test_a_recipe_with_an_unknown_key() -> None:
    with pytest.raises(UsageError, match="recipe x: unknown key 'kernel_conf'"):
        recipe.resolve("x", {"src": "a"}, {"x": {"kernel_conf": "XENA"}})


def test_two_recipes_with_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "b"\n')
    (tmp_path / "b.toml").write_text("")
    with pytest.raises(UsageError, match=r"two recipes with the name 'b': a.toml and b.toml"):
        recipe.available(tmp_path)


def test_the_recipes_we_ship() -> None:
    for name in recipe.available():
        made = recipe.resolve(name, {"src": "/usr/src"}, recipe.available())
        layout.load(made.layout, size=made.size, bsize=made.bsize)
    assert (paths.project() / "images/freebsd/release.toml").is_file()


# -- release sets -----------------------------------------------------------------------------------------------------


def test_manifest() -> None:
    text = f'base.txz\t{"a" * 64}\t28236\tbase\t"Base system (MANDATORY)"\ton\n'
    assert dist.parse_manifest(text)["base"] == dist.ReleaseSet("base", "base.txz", "a" * 64, "Base system (MANDATORY)")
    with pytest.raises(BuildError, match="MANIFEST, line 1"):
        dist.parse_manifest("<html>")
    with pytest.raises(BuildError, match="names no set"):
        dist.parse_manifest(text.replace("base.txz", "../base.txz"))
    for name in ("..", "", "b" * 101, "b\0", "b\x1b[2J"):
        with pytest.raises(BuildError, match="names no set"):
            dist.parse_manifest(text.replace("base.txz", name))
        with pytest.raises(BuildError, match="names no set"):
            dist.parse_manifest(text.replace("\tbase\t", f"\t{name}\t"))


def test_excluded_paths_of_sets() -> None:
    patterns = ("usr/tests", "usr/lib/*.a", "usr/bin/clang*")
    assert [p for p in ("usr/tests/a/b", "usr/testsuite", "usr/lib/libc.a", "usr/bin/clang-cpp") if dist.left_out(p, patterns)] == [
        "usr/tests/a/b",
        "usr/lib/libc.a",
        "usr/bin/clang-cpp",
    ]
