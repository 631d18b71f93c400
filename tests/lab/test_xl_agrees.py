# SPDX-License-Identifier: BSD-2-Clause
"""Compare our syntax for xl with xl: hundreds of configurations in one command, and vdevs one by one."""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import UsageError
from harness.hosts import doctor
from harness.lab.host import LabHost
from harness.xen import gdbsx, vdev
from harness.xen.config import Disk, DomainConfig, Vif

sys.path.append(str(Path(__file__).parents[1] / "unit"))
import xl_reader

SEED, COUNT = 28, 300
# Special characters of the syntaxes, escapes, and characters of one to four bytes.
KNOWN = "'\"\\,=[]#;:|+ \t\r\v\f\a\b\x01\x1b\x7f\x85\xa0é\u2028\u20ac\U0001f600axn0"
CORNERS = ["a='x y' b=\"z\"", "'", '"', "\\", "\\\\'", "\\n", "\\x41", "\\101", "a,b", ",", ",,", "a,", " a ", "=", "target=x", "#", "format=qcow2,vdev=hdb", "phy:/a"]  # fmt: skip


def generated() -> list[DomainConfig]:
    """Configurations with arbitrary strings that xl accepts. Each of the first ones has one corner case."""
    chance = random.Random(SEED)

    def text(least: int = 0, *, line: bool = True) -> str:
        return "".join(chance.choices(KNOWN + ("\n" if line else ""), k=chance.randint(least, 12)))

    found = []
    for n in range(COUNT):
        corner = CORNERS[n] if n < len(CORNERS) else text(1)
        path = corner if "\n" not in corner else text(1, line=False)
        names = chance.sample(["xvda", "xvdb1", "hdc", "sda15", "d0x10p1", "0xcb00", "xvdq", "hda63"], 3)
        found.append(
            DomainConfig(
                f"g{n}", "pvh", 64, kernel="/k " + text(), ramdisk=text(), extra=corner + text() * (n >= len(CORNERS)), bootloader="/b" + text(),
                bootloader_args=(corner, text(), text(1)),
                disks=(Disk(path, names[0]), Disk("/" + path + text(line=False), names[1], readonly=True, backend="qdisk"), Disk("", names[2], cdrom=True)),
                vifs=(Vif("br " + text().replace(",", "."), "00:16:3e:00:00:01", script="/s" + text().replace(",", ";")),),
                more=(("seclabel_", text()), ("rtc_timeoffset", chance.choice([-3600, 0, 7])), ("localtime", chance.choice([True, False])), ("device_model_args", (corner, text()))),
            )
        )  # fmt: skip
    return found


_CREATE = """
mkdir -p /root/syntax && cd /root/syntax && tar xf - && for f in *.cfg; do
echo "%$f"; xl create -n "$f" 2>&1; echo "%$?"; done
"""


def parsed_by_xl(host: LabHost, texts: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    """The status and the output of ``xl create -n`` for each configuration, from one command."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in texts.items():
            info = tarfile.TarInfo(f"{name}.cfg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    said = host.transport.run(["sh", "-c", _CREATE], Deadline(900), stdin=packed.getvalue()).text
    found, name, lines = {}, "", []
    for line in said.split("\n"):
        if line.startswith("%") and line.endswith(".cfg"):
            name, lines = line[1:-4], []
        elif line.startswith("%"):
            found[name] = (int(line[1:]), "\n".join(lines))
        else:
            lines.append(line)
    assert found.keys() == texts.keys()
    return found


def taken(said: str) -> Any:
    """The JSON that ``xl create -n`` prints behind "Parsing config from"."""
    return json.JSONDecoder().raw_decode(said[said.index("{\n") :])[0]


def test_every_configuration_comes_back(host: LabHost) -> None:
    configs = generated()
    answers = parsed_by_xl(host, {config.name: config.render().encode() for config in configs})
    for config in configs:
        status, said = answers[config.name]
        assert status == 0, f"{config.render()}\n{said}"
        got = taken(said)
        domain = got["b_info"]
        for key, value in (
            ("kernel", config.kernel),
            ("ramdisk", config.ramdisk),
            ("cmdline", config.extra),
            ("bootloader", config.bootloader),
        ):
            assert domain.get(key) == (value or None), (key, config.render())
        assert domain["bootloader_args"] == list(config.bootloader_args), config.render()
        more = dict(config.more)
        assert domain["extra"] == list(more["device_model_args"]), config.render()  # type: ignore[arg-type]
        # libxl's type of the offset has no sign (tools/libs/light/libxl_types.idl).
        assert domain.get("rtc_timeoffset", 0) == more["rtc_timeoffset"] % (1 << 32)  # type: ignore[operator]
        assert domain.get("localtime") == str(more["localtime"])
        disks = [(disk.get("pdev_path") or "", disk["vdev"], bool(disk.get("readwrite", 0))) for disk in got["disks"]]
        assert disks == [(disk.target, disk.vdev, not (disk.readonly or disk.cdrom)) for disk in config.disks], config.render()
        assert [(nic["bridge"], nic["script"]) for nic in got["nics"]] == [(vif.bridge, vif.script) for vif in config.vifs]


@pytest.mark.parametrize("name", ["key", "sign", "nul", "both"])
def test_what_we_refuse_xl_refuses_or_misreads(name: str, host: LabHost) -> None:
    """We refuse only configurations that xl does not read correctly."""
    text = {
        "key": b"a-b = 1\n",
        "sign": b"rtc_timeoffset = -5\n",
        "nul": b'extra = "a\0b"\n',
        "both": b"extra = 'a\"b'c'\n",
    }[name]
    status, said = parsed_by_xl(host, {"one": b'name = "g"\ntype = "pvh"\nmemory = 64\n' + text})["one"]
    assert status != 0, said


def test_a_target_ends_at_a_line_end(host: LabHost) -> None:
    text = 'name = "g"\ntype = "pvh"\nmemory = 64\ndisk = ["vdev=xvda,target=/a\\nb"]\n'
    status, said = parsed_by_xl(host, {"one": text.encode()})["one"]
    assert status != 0 or taken(said)["disks"][0]["pdev_path"] != "/a\nb", said


# -- an existing domain ----------------------------------------------------------------------------------------------------

EXTRA = "console=hvc0 a='x y' b=\"z\" c=\\ d=\t\x1bé"


_READY = """
mkdir -p '/root/a, b' && cd '/root/a, b' && for f in one,two.img three, "'\\"=.img"; do truncate -s 1M "$f"; done; ls /usr/lib/xen-*/boot/xen-shim
"""


@pytest.fixture
def domain(host: LabHost) -> tuple[int, DomainConfig]:
    """A domain that is paused before its first instruction, with its number. Its disks have commas in their paths."""
    shim = host.transport.run(["sh", "-c", _READY]).text.split()[0]
    paths = {"xvdga": "one,two.img", "xvdgb": "three,", "xvdgc": "'\"=.img"}
    disks = tuple(Disk(f"/root/a, b/{path}", name) for name, path in paths.items())
    config = DomainConfig("fxh-syntax", "pvh", 32, kernel=shim, extra=EXTRA, disks=disks)
    return host.toolstack.create(config, Deadline(300)), config


_FILES = """
for v in $(xenstore-list /local/domain/0/backend/vbd/$1); do xenstore-read /local/domain/0/backend/vbd/$1/$v/params; done
"""


def test_a_real_domain_has_what_was_written(domain: tuple[int, DomainConfig], host: LabHost) -> None:
    domid, config = domain
    (got,) = json.loads(host.transport.run(["xl", "list", "-l", config.name]).text)
    targets = [disk.target for disk in config.disks]
    assert got["config"]["b_info"]["cmdline"] == EXTRA
    assert [disk["pdev_path"] for disk in got["config"]["disks"]] == targets
    assert sorted(host.transport.run(["sh", "-c", _FILES, "sh", str(domid)]).text.splitlines()) == sorted(targets)


def test_gdbsx_is_offered_where_the_tool_works(domain: tuple[int, DomainConfig], host: LabHost) -> None:
    """Our probe of Xen agrees with the tool."""
    probed = host.transport.run(["sh", "-c", gdbsx.PROBE]).text.split()
    tool = host.transport.run(["timeout", "20", "gdbsx", "-c", str(domain[0]), "64", "0"], check=False)
    refused = b"NOT enabled for gdbsx" in tool.stderr + tool.stdout
    assert probed[0] == ("gdbsx-off" if refused else "gdbsx"), tool


def test_the_doctor_finds_a_lab_well(host: LabHost) -> None:
    checks = {check.name: check for check in doctor.evaluate(host.transport.run(["sh", "-c", doctor.SCRIPT]).text, HostConfig("lab"), time.time())}  # fmt: skip
    assert {name for name, check in checks.items() if check.status != doctor.OK} <= {"UEFI", "clock", "memory"}
    assert checks["Xen"].detail == host.info.xen_version


TAKEN = (
    "hda", "hda1", "hdb63", "hdc", "hdd2", "sda", "sda1", "sdp15", "xvda", "xvda1", "xvdp15", "xvdq", "xvda16", "xvdb255", "xvdz", "xvdaa",
    "xvdbgqcv", "d1000p0", "d0x11p1", "d022p0x2", "d1048575p255", "0xcb00", "0x100", "0145463", "99999", "2147483647",
)  # fmt: skip
REFUSED = (
    "xvda0", "hda0", "sda0", "xvda01", "hda01", "sda01", "d0", "d0p", "d0p08", "d08p0", "d0p256", "d1048576p0", "dp0", "08", "09", "018", "0x", "0xg",
    "1a", "hde", "hda64", "sdq", "sda16", "xvda256", "xvdbgqcw", "xvdA", "XVDA", "vda", "nvme0", "2147483648", "0x80000000", "4294967296", "-1",
)  # fmt: skip
# libxl reads these as numbers by mistake. We refuse them.
MISTAKEN = ("hd", "hd2", "+5", " 6", "xvdb+3", "xvdb 4", "xvd", "xvd1", "xvdb-3")
# Without grep: under emulation each process costs 40 ms, and there are some thousand pairs.
_ATTACH = """
truncate -s 1M /root/vdev.img; b=$(losetup -f --show -r /root/vdev.img); d=$1; shift
list() { set -- $(xenstore-list /local/domain/$d/device/vbd); all=" $* "; }
list
for v; do before=$all; xl block-attach $d "format=raw,vdev=$v,access=ro,target=$b" >/dev/null 2>&1; s=$?
list; new=; for n in $all; do case $before in *" $n "*) ;; *) new=$n ;; esac; done; echo "$v|$s|$new"; done
"""


def test_vdevs_are_what_xl_makes_of_them(domain: tuple[int, DomainConfig], host: LabHost) -> None:
    """``xl block-attach`` to a paused domain: the number of the new device, or a refusal."""
    names = (*TAKEN, *REFUSED, *MISTAKEN)
    argv = ["sh", "-c", _ATTACH, "sh", str(domain[0]), *names]
    rows = [line.split("|") for line in host.transport.run(argv, Deadline(900)).text.splitlines()]
    got = {name: int(new) if status == "0" else None for name, status, new in rows}
    assert {name: got[name] for name in (*TAKEN, *REFUSED)} == {name: vdev.number(name) for name in TAKEN} | dict.fromkeys(REFUSED)
    assert got == {name: None if (number := xl_reader.vdev(name)) == -1 else number for name in names}
    for name in (*REFUSED, *MISTAKEN):
        with pytest.raises(UsageError):
            vdev.number(name)


_NOT_UTF8 = """
cd /root && printf 'name="u"\\ntype="pvh"\\nmemory=32\\nkernel="%s"\\nextra="\\377"\\n' /usr/lib/xen-*/boot/xen-shim > u.cfg
xl create -p u.cfg >/dev/null 2>&1; echo "create $?"; xl list -l u
"""


def test_libxl_does_not_read_back_what_is_not_utf8(host: LabHost) -> None:
    """The reason why we refuse it: xl accepts it, and then cannot print the domain's configuration."""
    done = host.transport.run(["sh", "-c", _NOT_UTF8], Deadline(300))
    assert done.text.startswith("create 0\n"), done
    assert b"invalid bytes in UTF8 string" in done.stderr
