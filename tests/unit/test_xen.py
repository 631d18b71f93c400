# SPDX-License-Identifier: BSD-2-Clause
"""Tests harness/xen: configurations, and parsers of xl's output. The output is from Xen 4.20 unless noted otherwise."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.hosts import inventory
from harness.transport.local import LocalTransport
from harness.xen import elfnotes, event_wait, events, hypervisor_log, listing, vdev, xenstore, xl
from harness.xen.config import Disk, DomainConfig, Vif

LIST = """\
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0   768     1     r-----      62.5
fxh-f                                        3   512     1     -b----      25.4
fxh-panicked                                 4   512     2     ---sr-       7.1
(null)                                       5     0     1     --ps-d       3.0
"""
INFO = """\
host                   : lab
release                : 6.12.118+deb13-amd64
nr_cpus                : 1
virt_caps              : pv hvm hap gnttab-v1 gnttab-v2
total_memory           : 2559
free_memory            : 1762
xen_major              : 4
xen_minor              : 20
xen_extra              : .5-pre
xen_caps               : xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64
xen_commandline        : placeholder console=com1
"""
LOG = """\
Waiting for domain fxh-f (domid 2) to die [pid 467]
Domain 2 has shut down, reason code 1 0x1
Action for shutdown reason code 1 is restart
Domain 2 needs to be cleaned up: destroying the domain
Done. Rebooting now
Waiting for domain fxh-f (domid 3) to die [pid 467]
Domain 3 has shut down, reason code 3 0x3
Action for shutdown reason code 3 is preserve
"""


def test_list() -> None:
    dom0, running, dead, zombie = listing.parse_list(LIST)
    assert (dom0.name, dom0.running, dom0.shutdown, dom0.reason) == ("Domain-0", True, False, "")
    assert (running.domid, running.memory, running.blocked, running.time) == (3, 512, True, 25.4)
    assert (dead.shutdown, dead.reason, dead.vcpus) == (True, "reboot", 2)
    assert (zombie.name, zombie.paused, zombie.dying, zombie.reason) == ("(null)", True, True, "poweroff")


def test_list_refuses_unknown_output() -> None:
    with pytest.raises(ValueError, match=r"has no table|cannot parse"):
        listing.parse_list("libxl: error: something")


def test_a_list_with_complaints() -> None:
    said = "xencall: error: something is old\nWARNING: a second line"
    text = f"{said}\n{LIST}xl: the end\n"
    assert listing.parse_list(text) == listing.parse_list(LIST)
    assert listing.complaints(text) == f"{said}\nxl: the end"
    assert listing.complaints(LIST) == ""
    with pytest.raises(ValueError, match="row of `xl list`"):
        listing.parse_list(LIST.replace("-b----", "-q----"))


@pytest.mark.parametrize("name", ["a: b", "Name", "error: x", "(null)", "x 1 2"])
def test_a_domain_with_an_odd_name(name: str) -> None:
    line = f"{name:<40} {7:>5} {512:>5} {1:>5}     -b----  {1.5:>8}\n"
    assert listing.parse_list(LIST + line)[-1].name == name
    assert listing.complaints(LIST + line) == ""


# Output of the tools. A star marks the most informative line.
ERRORS = [
    "*xencall: error: Could not obtain handle on privileged command interface: No such file or directory\n"
    "libxl: error: libxl.c:102:libxl_ctx_alloc: cannot open libxc handle: No such file or directory\ncannot init xl context",
    "*libxl: error: libxl_disk.c:240:libxl__device_from_disk: Invalid or unsupported virtual disk identifier d0\n"
    "libxl_device_disk_add failed.",
    "libxl: warning: libxl_x.c:9:libxl__x: Domain 3:a default is used\n"
    "libxl: error: libxl_exec.c:117:libxl_report_child_exitstatus: /etc/xen/scripts/block add [811] exited with error status 1\n"
    "*libxl: error: libxl_device.c:1258:device_hotplug_child_death_cb: Domain 3:script: losetup: /x.img: failed to set up loop device\n"
    "libxl: error: libxl_create.c:1519:domcreate_launch_dm: Domain 3:unable to add disk devices\n"
    "libxl: error: libxl_domain.c:1183:libxl__destroy_domid: Domain 3:Non-existant domain\n"
    "libxl: error: libxl_domain.c:1137:domain_destroy_callback: Domain 3:Unable to destroy guest\n"
    "libxl: error: libxl_domain.c:1064:domain_destroy_cb: Domain 3:Destruction of domain failed",
    "*/x.cfg:3: config parsing error near `[': syntax error, unexpected '['\nFailed to parse config: Invalid argument",
    "*xc: error: panic: xg_dom_x.c:1: probe unable to XZ decompress kernel: Invalid kernel\n"
    "xc: error: panic: xg_dom_core.c:2: no loader found: Invalid kernel\n"
    "libxl: error: libxl_dom.c:593:libxl__build_dom: xc_dom_parse_image failed: No such file or directory\n"
    "libxl: error: libxl_create.c:1695:domcreate_rebuild_done: Domain 4:cannot (re-)build domain: -3",
    "*xc: error: panic: xg_dom_core.c:2: no loader found: Invalid kernel",
    "libxl: info: libxl_x.c:1: x: something\n*libxl: warning: libxl_x.c:2: x: something else\nxl: debug: y",
    "Parsing config from /x.cfg\n*libxl: error: libxl_device.c:1:f: script: Could not find bridge device xenbr7",
    "WARNING: ignoring device_model directive.\n*libxl: error: libxl_dm.c:2:f: Domain 3:could not open /x.img",
    "Parsing config from /x.cfg\n*WARNING: ignoring device_model directive.",
    "*nonsense",
    "",
]  # fmt: skip


@pytest.mark.parametrize("said", ERRORS)
def test_the_informative_line(said: str) -> None:
    wanted = next((line[1:] for line in said.splitlines() if line.startswith("*")), "")
    assert listing.informative(said.replace("*", "")) == wanted


def test_info_with_a_complaint() -> None:
    info = listing.parse_info(f"xencall: error: old\ntotal memory: unknown\n{INFO}libxl: warning: x: y: z\n")
    assert (info.number, info.total_memory, info.x86) == ((4, 20), 2559, True)
    assert dict(info.values)["xen_commandline"] == "placeholder console=com1"


def test_info() -> None:
    info = listing.parse_info(INFO)
    assert (info.xen_version, info.free_memory, info.kernel) == ("4.20.5-pre", 1762, "6.12.118+deb13-amd64")
    assert info.guest_types == ("pv", "pvh", "hvm")
    with pytest.raises(ValueError, match="xen_major"):
        listing.parse_info("xl: not found")


def test_log() -> None:
    first, second = listing.parse_log(LOG)
    assert (first.domid, first.reason, first.action) == (2, "reboot", "restart")
    assert (second.domid, second.reason, second.action) == (3, "crash", "preserve")


def test_config() -> None:
    config = DomainConfig(
        "fxh-1", "pvh", 512, kernel="/k", extra='a="b",c=1', disks=(Disk("/dev/sda"), Disk("/x.iso", "hdc", cdrom=True)),
        vifs=(Vif("xenbr0", "00:16:3e:00:00:01"),), more=(("msr_relaxed", 1), ("cpus", ("1", "2"))),
    )  # fmt: skip
    assert config.render().splitlines() == [
        'name = "fxh-1"',
        'type = "pvh"',
        "memory = 512",
        'kernel = "/k"',
        "extra = 'a=\"b\",c=1'",
        'disk = ["format=raw,vdev=xvda,access=rw,target=/dev/sda", "format=raw,vdev=hdc,access=ro,devtype=cdrom,target=/x.iso"]',
        'vif = ["bridge=xenbr0,mac=00:16:3e:00:00:01"]',
        "vcpus = 1",
        'on_poweroff = "destroy"',
        'on_reboot = "restart"',
        'on_crash = "preserve"',
        "msr_relaxed = 1",
        'cpus = ["1", "2"]',
    ]


@pytest.mark.parametrize(
    "config",
    [
        DomainConfig("x", "xenpv", 1),
        DomainConfig("x\ny", "pv", 1),
        DomainConfig("x", "pv", 1, extra="a\0b"),
        DomainConfig("x", "pv", 1, on_crash="explode"),
        DomainConfig("x", "pv", 1, pvshim=True),
        DomainConfig("x", "pv", 1, disks=(Disk("/a\nb"),)),
        DomainConfig("x", "pv", 1, vifs=(Vif("b", "nonsense"),)),
    ],
)
def test_config_refuses_values_that_xl_misreads(config: DomainConfig) -> None:
    with pytest.raises(UsageError):
        config.render()


# vdev, its number in the toolstack, its name in current FreeBSD and in FreeBSD 8.
@pytest.mark.parametrize(
    ("name", "number", "now", "eight"),
    [
        ("hda", 768, "ada0", "ad0"), ("hdb", 832, "ada1", "ad1"), ("hdc", 5632, "ada2", "ad2"), ("hdd", 5696, "ada3", "ad3"),
        ("hda1", 769, "ada0", "ad0"), ("hda2", 770, "ada0", "ad0"),
        ("sda", 2048, "da0", "da0"), ("sdb", 2064, "da1", "da1"), ("sdp", 2288, "da15", "da15"),
        ("sda1", 2049, "da0", "da0"), ("sda2", 2050, "da0", "da0"),
        ("xvda", 51712, "xbd0", "xbd0"), ("0xCA00", 51712, "xbd0", "xbd0"), ("51712", 51712, "xbd0", "xbd0"),
        ("d0p0", 51712, "xbd0", "xbd0"), ("xvdb", 51728, "xbd1", "xbd1"), ("0xCA10", 51728, "xbd1", "xbd1"),
        ("xvda1", 51713, "xbd0", "xbd0"), ("xvda2", 51714, "xbd0", "xbd0"), ("xvdp", 51952, "xbd15", "xbd15"),
        ("xvda16", 268435472, "xbd0", "xbd1"), ("xvdq", 268439552, "xbd16", "xbd0"),
        ("xvdz", 268441856, "xbd25", "xbd0"), ("xvdaa", 268442112, "xbd26", "xbd0"),
        ("d1000p0", 268691456, "xbd1000", "xbd0"), ("0xCB00", 51968, "xbd0", "xbd0"),
        ("0x100", 256, "xbd0", "xbd0"), ("0x4100", 16640, "da16", "da16"), ("0x5B40", 23360, "ada19", "ad19"),
    ],
)  # fmt: skip
def test_vdev(name: str, number: int, now: str, eight: str) -> None:
    assert vdev.number(name) == number
    assert vdev.freebsd_disk(number) == now
    assert all(vdev.freebsd_disk(number, version) == now for version in ((9, 3), (13, 2), (99, 0)))
    assert vdev.freebsd_disk(number, (8, 0)) == eight


@pytest.mark.parametrize(
    "name",
    ["hde", "hda64", "sdq", "sda16", "xvd", "xvda01", "vda", "", "d1048576p0", "0x80000000", "xvda256", "nvme0", "2147483648"],
)
def test_vdev_refuses_what_xl_refuses(name: str) -> None:
    with pytest.raises(UsageError):
        vdev.number(name)


def test_xenstore_tree() -> None:
    tree = xenstore.parse_tree('/local = ""\n/local/domain/0/name = "Domain-0"\nnoise\n/x = "a = \\"b\\""\n')
    assert tree["/local/domain/0/name"] == "Domain-0"
    assert tree["/local"] == ""
    assert len(tree) == 3


BEFORE = "%domains\n" + LIST.replace("fxh-f ", "other ") + "%xenstore\n%vifs\nlo\nxenbr0\n%files\n"
AFTER = """\
%domains
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0   768     1     r-----      62.5
fxh-a                                        7   512     1     -b----      25.4
%xenstore
/local/domain/0/backend/vbd/7/51712 = ""
/local/domain/0/backend/vbd/6/51712 = ""
/local/domain/7 = ""
/libxl/6 = ""
%vifs
vif7.0
vif6.0
%files
/sys/block/loop0/loop/backing_file:/var/lib/x.img
/proc/1/cmdline:/sbin/init
/proc/9/cmdline:xl create -p /var/lib/fxh/fxh-a.cfg
/proc/10/cmdline:/usr/lib/xen-4.20/bin/xenconsole 6 --num 0 --type pv
"""


def test_leaks_belong_to_no_domain() -> None:
    leaks = inventory.parse(AFTER).leaks_since(inventory.parse(BEFORE))
    assert sorted(map(str, leaks)) == [
        "loop loop0 /var/lib/x.img",
        "process /usr/lib/xen-4.20/bin/xenconsole 6 --num 0 --type pv",
        "vif vif6.0",
        "xenstore /libxl/6",
        "xenstore /local/domain/0/backend/vbd/6/51712",
    ]


# -- ELF notes --------------------------------------------------------------------------------------------------------


def build(tmp_path: Path, bits: str, note: str, *, alloc: bool) -> Path:
    source, target = tmp_path / "k.S", tmp_path / "k"
    source.write_text(f'.section .note.Xen,"{"a" if alloc else ""}",@note\n{note}\n.text\n.globl _start\n_start: hlt\n')
    argv = ["cc", bits, "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-o", str(target), str(source)]
    subprocess.run(argv, check=True, capture_output=True)
    return target


PHYS32 = '.long 4,4,18\n.asciz "Xen"\n.long 0x100000'
ENTRY = '.long 4,8,1\n.asciz "Xen"\n.quad 0'
PVHV1 = '.long 4,24,10\n.asciz "Xen"\n.asciz "auto_translated_physmap"'


@pytest.mark.parametrize("alloc", [True, False], ids=["segment", "section"])
@pytest.mark.parametrize("bits", ["-m64", "-m32"])
def test_notes_in_segment_or_section(tmp_path: Path, bits: str, alloc: bool) -> None:
    found = elfnotes.read(build(tmp_path, bits, PHYS32, alloc=alloc))
    assert found.bits == int(bits[2:])
    assert found.guest_types == ("pvh",)


def test_entry_is_pv_unless_it_requires_physmap(tmp_path: Path) -> None:
    assert elfnotes.read(build(tmp_path, "-m64", ENTRY, alloc=True)).guest_types == ("pv",)
    assert elfnotes.read(build(tmp_path, "-m64", f"{ENTRY}\n{PVHV1}\n{PHYS32}", alloc=True)).guest_types == ("pvh",)
    assert elfnotes.read(build(tmp_path, "-m64", "", alloc=True)).guest_types == ()


@pytest.mark.parametrize("data", [b"", b"\x1f\x8bgzip", b"MZ" + bytes(100), b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 70])
def test_no_kernel(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "k").write_bytes(data)
    with pytest.raises(UsageError, match="ELF"):
        elfnotes.read(tmp_path / "k")


@given(st.binary(max_size=200))
def test_garbage_never_breaks_the_parser(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        elfnotes.parse(b"\x7fELF\x02\x01\x01" + data)


EVENTS = """\
(XEN) [   36.420541] d2v0: upcall vector 93
(XEN) [   70.521775] 'e' pressed -> dumping event-channel info
(XEN) [   70.521958] Event channel information for domain 0:
(XEN) [   70.522012] Polling vCPUs: {}
(XEN) [   70.522047]     port [p/m/s]
(XEN) [   70.522233]        1 [0/0/  -   ]: s=5 n=0 x=0 v=0
(XEN) [   70.522668]        6 [0/0/  -   ]: s=3 n=0 x=0 d=0 p=26
(XEN) [   70.522849]        8 [0/0/  -   ]: s=4 n=0 x=0 p=9 i=9
(XEN) [   70.524549]       31 [0/0/  -   ]: s=3 n=0 x=0 d=2 p=11
(XEN) [   70.524617]       32 [1/1/  -   ]: s=3 n=0 x=0 d=2 p=12
(XEN) [   70.524705] Event channel information for domain 2:
(XEN) [   70.524793]     port [p/m/s]
(XEN) [   70.525490]       11 [0/0/0]: s=3 n=0 x=0 d=0 p=31
(XEN) [   70.525554]       12 [0/0/0]: s=3 n=0 x=0 d=0 p=32
"""


def test_event_channels() -> None:
    """The parser reads the last dump in Xen's log: interdomain ports with their remote ports."""
    found = events.parse(EVENTS.replace("[1/1/", "[0/0/") + EVENTS)

    assert [(c.domain, c.port, c.remote, c.remote_port) for c in found] == [
        (0, 6, 0, 26), (0, 31, 2, 11), (0, 32, 2, 12), (2, 11, 0, 31), (2, 12, 0, 32),
    ]  # fmt: skip
    assert [c.port for c in found if c.pending and c.masked] == [32]
    assert events.parse("(XEN) [    1.0] nothing of the kind") == ()


class Dom0:
    """A dom0 whose log of Xen has one more text of ``new`` at each dump."""

    def __init__(self, *new: str, before: str = "") -> None:
        self.new, self.before = list(new), before

    def log(self, before: str, new: str) -> str:
        return before + new

    def run(self, argv: list[str]) -> object:
        before, self.before = self.before, self.log(self.before, self.new.pop(0))
        return type("Completed", (), {"text": f"{before}{argv[-1]}\n{self.before}"})


@pytest.mark.parametrize(
    ("second", "ports"), [(EVENTS, [32]), (EVENTS.replace("[1/1/", "[0/0/"), [])], ids=["stays", "was-handled"]
)
def test_deaf_channels_stay_masked(second: str, ports: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is pending and masked once may still be handled. One that is so in both dumps will not be."""
    dom0 = Dom0(EVENTS, second)

    monkeypatch.setattr("harness.xen.events.time.sleep", lambda seconds: None)

    assert [channel.port for channel in events.deaf(dom0, 2)] == ports  # type: ignore[arg-type]
    assert events.deaf(Dom0(EVENTS), 3) == ()  # type: ignore[arg-type]


def test_a_dump_that_the_log_lost_is_not_an_earlier_one() -> None:
    """An old dump stays in Xen's log. If the new one has no header, because the log is too small, there are no channels."""
    assert events.dump(Dom0(EVENTS, before=EVENTS)) == events.parse(EVENTS)  # type: ignore[arg-type]
    assert events.dump(Dom0("", before=EVENTS)) == ()  # type: ignore[arg-type]
    headless = EVENTS.partition("domain 0:\n")[2]
    assert events.dump(type("Full", (Dom0,), {"log": lambda self, before, new: new})(headless, before=EVENTS)) == ()


@pytest.mark.parametrize("size", [30, 40, 1000])
def test_what_is_new_in_a_log_that_is_full(size: int) -> None:
    """The log keeps its last ``size`` characters, also when lines repeat."""
    old, new = "(XEN) one\n(XEN) two\n(XEN) two\n", "(XEN) two\n(XEN) 3\n"
    assert hypervisor_log.since(old[-size:], (old + new)[-size:]) == new[-size:]
    assert hypervisor_log.since(old, old) == ""
    assert hypervisor_log.since("", new) == new


def test_only_xen_itself_reports_errors() -> None:
    said = [
        "(XEN) [   36.4] Xen WARN at arch/x86/mm.c:12",
        "(XEN) Xen BUG at common/a.c:1",
        "(XEN) Assertion 'a' failed at common/a.c:2",
    ]
    others = [
        "(d3) OVMF: DEBUG enabled",
        "(XEN) [   36.4] d3v0: Xen BUG at x",
        "(d3) (XEN) Xen BUG at x",
        "(XEN) DEBUG",
        "(XEN) no WARNING",
    ]
    assert hypervisor_log.errors("\n".join(others + said)) == said


def follow_xl_log(log: Path) -> AbstractContextManager[event_wait.Pause]:
    return event_wait.wait_on_output(LocalTransport(), ["sh", "-c", xl._FOLLOW, "sh", str(log)], seconds=30, own=1, news=xl._NEWS)


def test_a_pause_ends_only_at_news(tmp_path: Path) -> None:
    """Of xl's log of a reboot, only the line that tells that the domain runs ends the pause."""
    log = tmp_path / "xl-g.log"
    log.write_text("Waiting for domain g (domid 2) to die [pid 271]\n")
    with follow_xl_log(log) as pause, log.open("a", buffering=1) as file:
        begun = time.monotonic()
        file.write("Domain 2 has shut down, reason code 1 0x1\nDone. Rebooting now\nWait")
        file.flush()
        pause(0.5)
        assert time.monotonic() - begun >= 0.5
        file.write("ing for domain g (domid 3) to die [pid 271]\n")
        pause(20)
        assert time.monotonic() - begun < 15


def test_a_missing_log_is_followed(tmp_path: Path) -> None:
    log = tmp_path / "xl-g.log"
    with follow_xl_log(log) as pause:
        begun = time.monotonic()
        log.write_text("libxl: error: libxl_create.c:2037:console_xswait_callback: domain 5 console tty: timed out\n")
        pause(20)
        assert time.monotonic() - begun < 15


@pytest.mark.parametrize("then", ["echo @releaseDomain; exec sleep 60", "true"], ids=["tells", "ends"])
def test_a_watch_ends_a_pause(then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, go = tmp_path / "xenstore-watch", tmp_path / "go"
    program.write_text(f'#!/bin/sh\nfor path; do echo "$path"; sleep 0.1; done; until [ -e {go} ]; do sleep 0.05; done; {then}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with xenstore.Xenstore(LocalTransport()).watch(*xenstore.DOMAINS, seconds=30) as pause:
        begun = time.monotonic()
        pause(0.1)
        assert time.monotonic() - begun >= 0.1, "the initial events of a watch must not end a pause"
        go.touch()
        begun = time.monotonic()
        pause(20 if then != "true" else 0.5)
        waited = time.monotonic() - begun
        assert waited < 10 if then != "true" else waited >= 0.5, "after the watch has ended, a pause must last its full duration"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "xc: error: panic: xg_dom_core.c:536: xc_dom_chk_alloc_pages: segment kernel too large (0xfffff67 > 0x20000 - 0x2a1 pages): "
            "Out of memory",
            "segment kernel too large",
        ),
        ("xc: error: panic: xg_dom_hvmloader.c:110: xc_dom_parse_hvm_kernel: ELF image is not 32bit: Invalid kernel", "not 32bit"),
        (
            "xl: libxl_dom.c:964: libxl__domain_firmware: Assertion `info->type == LIBXL_DOMAIN_TYPE_HVM' failed.",
            "xl aborts: libxl_dom.c",
        ),
        (
            "xc: error: panic: xg_dom_bzimageloader.c:886: xc_dom_probe_bzimage_kernel unable to XZ decompress kernel: Invalid kernel\n"
            "xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel",
            "unable to XZ decompress kernel",
        ),
        (
            "xc: error: panic: xg_dom_bzimageloader.c:617: xc_try_zstd_decode: ZSTD decompress support unavailable\n: Internal error\n"
            "xc: error: panic: xg_dom_bzimageloader.c:897: xc_dom_probe_bzimage_kernel unable to ZSTD decompress kernel: Invalid kernel\n"
            "xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel",
            "ZSTD decompress support unavailable",
        ),
        (
            "xc: error: panic: xg_dom_bzimageloader.c:919: xc_dom_probe_bzimage_kernel unable to LZO decompress kernel\n: Invalid kernel\n"
            "xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel",
            "unable to LZO decompress kernel",
        ),
        (
            "xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel",
            "no loader found",
        ),
        (
            "xc: error: panic: xg_dom_x.c:1: x: old reason: Invalid kernel\nDomain 2 has shut down, reason code 1 0x1\n"
            "xc: error: panic: xg_dom_x.c:1: x: new reason: Invalid kernel\n"
            "xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel",
            "new reason",
        ),
        ("xc: error: panic: xg_dom_core.c:230: '/k': zero length file: Internal error", "zero length file"),
        ("xc: error: panic: xg_dom_core.c:205: failed to open file '(null)': Bad address: Internal error", "(null)"),
        ("xc: error: panic: xg_dom_core.c:205: failed to open file '/k': No such file or directory: Internal error", ""),
        ("xc: error: panic: xg_dom_boot.c:119: xc_dom_boot_mem_init: can't allocate low memory for domain: Out of memory", ""),
        ("libxl: error: libxl_device.c:1124:device_backend_callback: unable to add device", ""),
    ],
)
def test_a_refusal_differs_from_a_lack_of_resources(said: str, why: str) -> None:
    found = listing.parse_refusal(
        f"Parsing config from /x.cfg\n{said}\nlibxl: error: libxl_create.c:1695:domcreate_rebuild_done: no\n"
    )
    assert (found is not None) == bool(why)
    assert found is None or why in found.why
