# SPDX-License-Identifier: BSD-2-Clause
"""Tests rendered configurations with xl_reader.py, which parses like xl. tests/lab/test_xl_agrees.py runs xl itself."""

from __future__ import annotations

import pytest
import xl_reader
from hypothesis import example, given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.xen import vdev
from harness.xen.config import Disk, DomainConfig, Vif

# UTF-8 text without NUL, in which characters with a meaning in xl's syntax are frequent.
TEXT = st.text(st.one_of(st.sampled_from("'\"\\,=\n\r\t\a\b\f\v[]#; x0n\x01\x7fé"), st.characters(exclude_categories=["Cs"], exclude_characters="\0")))  # fmt: skip


def domain(**more: object) -> DomainConfig:
    return DomainConfig("g", "pvh", 64, **more)  # type: ignore[arg-type]


@given(TEXT, TEXT)
@example("a='x y' b=\"z\"", "\\")
@example("\\'\"", "'\\\"")
@example("\x1b[0m\x7f\x01", "\x85\u2028")
def test_every_string_is_read_as_it_was(extra: str, item: str) -> None:
    text = domain(extra=extra, bootloader_args=(item, extra), more=(("spice_x.y", item),)).render()
    found = xl_reader.config(text)
    assert found.get("extra", b"") == extra.encode()
    assert found["bootloader_args"] == [item.encode(), extra.encode()]
    assert found["spice_x.y"] == item.encode()
    assert text.count("\n") == len(found), "each line must have one setting"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("console=xvc0", '"console=xvc0"'),
        ('a="b"', "'a=\"b\"'"),
        ("a='b'", "\"a='b'\""),
        ("a='x y' b=\"z\"", '"a=\'x y\' b=\\"z\\""'),
        ("C:\\x", '"C:\\\\x"'),
        ("one\ntwo\t\r\v\f\a\b", '"one\\ntwo\\t\\r\\v\\f\\a\\b"'),
        ("é\x1b", '"é\x1b"'),
    ],
)
def test_how_a_string_is_written(text: str, written: str) -> None:
    assert f"extra = {written}\n" in domain(extra=text).render()


@pytest.mark.parametrize(("value", "written"), [(True, "1"), (False, "0"), (7, "7"), (-1, '"-1"'), ("", '""'), ((), "[]")])
def test_how_other_values_are_written(value: object, written: str) -> None:
    assert f"\nkey = {written}\n" in domain(more=(("key", value),)).render()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (domain(extra="a\0b"), "extra contains a NUL"),
        (domain(kernel="/boot/\udce9"), "kernel is not UTF-8"),
        (domain(more=(("a-b", 1),)), "invalid xl.cfg key 'a-b'"),
        (domain(more=(("Key", 1),)), "invalid xl.cfg key 'Key'"),
        (domain(more=(("a\nb", 1),)), "invalid xl.cfg key 'a"),
        (domain(more=(("key", 1 << 63),)), "key 9223372036854775808"),
        (domain(more=(("key", ("a", "\0")),)), "key contains a NUL"),
        (DomainConfig("x\ny", "pv", 1), "the domain name contains a control character"),
    ],
)
def test_what_xl_cannot_hold_is_named(config: DomainConfig, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.render()
    assert caught.value.message.startswith(named)


@given(TEXT.filter(lambda text: text and "\n" not in text), st.booleans())
@example("/var/img/a,b.img", False)
@example("/a,", True)
@example("/a,,,format=qcow2,", False)
@example(",", False)
@example(" x= ", True)
def test_every_target_is_read_as_it_was(target: str, cdrom: bool) -> None:
    disk = Disk(target, "xvdb", backend="qdisk", cdrom=cdrom)
    alone = xl_reader.disk(disk.render())
    assert alone["target"] == target.encode()
    assert (alone["format"], alone["vdev"], "cdrom" in alone) == (b"raw", b"xvdb", cdrom)
    assert xl_reader.config(domain(disks=(disk,)).render())["disk"] == [disk.render().encode()]


def test_a_comma_in_a_target() -> None:
    assert Disk("/var/img/a,b.img").render() == "format=raw,vdev=xvda,access=rw,target=/var/img/a,b.img"
    assert Disk("/a,").render().endswith(",target=/a,,")


@pytest.mark.parametrize(
    ("disk", "named"),
    [
        (Disk("/a\nb"), "disk target"),
        (Disk("/a\0b"), "disk target"),
        (Disk(""), "disk xvda has no target"),
        (Disk("/a", format="raw,vdev=xvdb"), "disk format"),
        (Disk("/a", backend="phy,x"), "disk backend"),
        (Disk("/a", "xvda,access=ro"), "invalid vdev 'xvda,access=ro'"),
        (Disk("/a", "xvda0"), "invalid vdev 'xvda0'"),
    ],
)
def test_a_disk_that_xl_cannot_hold_is_named(disk: Disk, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        disk.render()
    assert caught.value.message.startswith(named)


@pytest.mark.parametrize("vif", [Vif("a,b"), Vif("b", script="/x,y"), Vif("b", model="e1000,mac=1")])
def test_a_vif_that_xl_cannot_hold_is_named(vif: Vif) -> None:
    with pytest.raises(UsageError, match="cannot express a comma"):
        vif.render()


@given(st.one_of(st.from_regex(r"(xvd|hd|sd|d|)[a-q]{0,3}[0-9xp]{0,6}", fullmatch=True), st.text("xvdhsp0189+- ٣", max_size=7)))
@example("xvda0")
@example("hda0")
@example("d0")
@example("08")
def test_a_vdev_is_what_libxl_makes_of_it(name: str) -> None:
    """number() refuses a vdev if libxl refuses it or accepts it by mistake, and no other."""
    said = xl_reader.vdev(name)
    try:
        assert vdev.number(name) == said
    except UsageError:
        mistaken = name in ("", "hd") or any(mark in name for mark in "+- ") or (name[:2] == "hd" and name[2:].isdigit())
        assert said < 0 or mistaken, f"libxl reads {name!r} as {said}"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0", 0), ("00", 0), ("0145000", 51712), ("0xca00", 51712), ("d0x10p0", 268439552), ("d010p01", 51841), ("d0p255", 268435711),
        ("d1048575p255", 536870911), ("xvda255", 268435711), ("xvdbgqcv", 536870656), ("hdd63", 5759), ("sdp15", 2303),
        ("2147483647", 2147483647),
    ],
)  # fmt: skip
def test_corners_that_xl_takes(name: str, number: int) -> None:
    assert vdev.number(name) == number == xl_reader.vdev(name)


@pytest.mark.parametrize(
    "name",
    [
        "xvda0", "hda0", "sda0", "xvda00", "xvda01", "d0", "d0p", "dp0", "d", "d0p08", "d0p256", "d0p0p0", "d08p0", "d-1p0", "d0p-1",
        "08", "09", "0x", "0xg", "0b1", "1a", "018", "xvd", "xvd1", "hd", "hd1", "sd", "sd1", "xvdA", "XVDA", "xvda 1", "xvda+1", "xvda-1",
        "+1", "-1", " 1", "1 ", "1\n", "xvda\n", "٣", "xvda٣", "d٣p٣", "hde", "hda64", "sdq", "sda16", "xvda256", "", "vda", "nvme0",
        "4294967296", "0x80000000", "020000000000", "xvdbgqcw", "d1048576p0",
        "9" * 5000, "xvda" + "9" * 5000, f"d{'9' * 5000}p0", "0" * 5000 + "8", "xvd" + "z" * 5000,
    ],
)  # fmt: skip
def test_corners_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        vdev.number(name)
