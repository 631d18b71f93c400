# SPDX-License-Identifier: BSD-2-Clause
"""``--keep dump``: which guests get a dump device, and what is kept of a panic."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.console.deaths import Death
from harness.deadline import Deadline
from harness.errors import TransportError
from harness.guests import keptdump, partitions
from harness.guests.os.base import GuestOS
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.guests.shape import Shape
from harness.guests.source import DiskImage, GuestSource
from harness.oracles.kerneldump import CLEARED, MINIDUMP
from harness.transport import Completed
from harness.transport.local import LocalTransport
from harness.xen.config import Disk
from tests.unit.test_kerneldump import header

SIZE = keptdump.LIMIT << 20
DUMP = MINIDUMP.ljust(8192, b"\0")
NO_DUMP = {"magic": b"\0"}
COMPLETE = "panic: boom\nDumping 62 out of 481 MB:..26%..52%..78%\nDump complete\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))


def source(guest_os: GuestOS, slot: int = -1) -> GuestSource:
    return GuestSource("x", guest_os, disks=(DiskImage(Path("/root.img"), slot=slot),), root="xbd0")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("kind", "slot"), [("pvh", -1), ("hvm", 4096)])
def test_a_freebsd_guest_gets_a_sparse_disk_and_its_name(kind: str, slot: int) -> None:
    given, shape = keptdump.equip(source(FreeBSD(), slot), Shape(kind, variables=(("a", "b"),)))
    disk = given.disks[1]
    assert (disk.vdev, disk.path.stat().st_size, disk.path.stat().st_blocks) == ("xvdo", SIZE, 0)
    assert shape.variables == (("dumpdev", "xbd14"), ("a", "b"))


@pytest.mark.parametrize(("guest_os", "kind"), [(Linux(), "pvh"), (FreeBSD(), "hvm")])
def test_other_guests_stay_as_they_are(guest_os: GuestOS, kind: str) -> None:
    given, shape = source(guest_os), Shape(kind)
    assert keptdump.equip(given, shape) == (given, shape)


class Console:
    """The end of a console."""

    def __init__(self, text: str, kind: str) -> None:
        self._data = text.encode()
        self.death = Death(kind, "boom") if kind else None  # type: ignore[arg-type]
        self.offset, self.closed = len(self._data), False

    def since(self, offset: int) -> bytes:
        return self._data[offset:]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "dump.img"
    path.touch()
    return path


def write_dump(disk: Path, dump: bytes = DUMP, **changes: object) -> None:
    block = header(**{"length": len(dump), "extent": len(dump), **changes})
    with disk.open("wb") as file:
        file.truncate(SIZE)
        file.seek(SIZE - len(dump) - 1024)
        file.write(block + dump + block)


def guest(disk: Path, text: str, kind: str = "panic", transport: Any = None, vdev: str = "xvdo", guest_os: Any = None) -> Any:
    return SimpleNamespace(
        name="g", domid=1, scale=0.01, console=Console(text, kind), config=SimpleNamespace(disks=(Disk(str(disk), vdev),)),
        host=SimpleNamespace(transport=transport or LocalTransport()), os=guest_os or FreeBSD(),
    )  # fmt: skip


def kept(tmp_path: Path, subject: Any, already: int = 0) -> tuple[str, list[str]]:
    """The text about the dump, and the names of all files."""
    into = tmp_path / "case"
    into.mkdir()
    assert keptdump.save(subject, into, already) == (into / f"{subject.name}.vmcore.gz").exists()
    text = into / "dump-g.txt"
    return text.read_text() if text.exists() else "", sorted(path.name for path in into.iterdir())


def test_the_dump_of_a_panic_is_kept(tmp_path: Path, disk: Path) -> None:
    write_dump(disk, panic=b"boom\x1b[2J")
    text, names = kept(tmp_path, guest(disk, COMPLETE))
    assert names == ["dump-g.txt", "g.vmcore.gz"]
    assert gzip.decompress((tmp_path / "case/g.vmcore.gz").read_bytes()) == DUMP
    assert text.startswith("g.vmcore.gz: a dump of 8192 bytes, compressed by gzip\ndump device: xbd14\npanic: boom")
    assert "\x1b" not in text


def test_a_dump_is_kept_after_the_toolstack_restarted_the_guest(tmp_path: Path, disk: Path) -> None:
    write_dump(disk)
    assert kept(tmp_path, guest(disk, f"{COMPLETE}a new boot\n", kind=""))[1] == ["dump-g.txt", "g.vmcore.gz"]


@pytest.mark.parametrize(
    ("console", "changes", "words"),
    [
        ("panic: boom\n", NO_DUMP, "the kernel says: nothing about a dump"),
        ("Dumping 9 MB:..\n", NO_DUMP, "but did not end it within 2 s"),
        ("Dump failed. Partition too small (about 140MB were needed this time).\n", NO_DUMP, "about 140MB were needed"),
        ("** DUMP FAILED (ERROR 5) **\n", {"version": 3}, "version 3.2"),
        (COMPLETE, {"length": 2**63}, "a dump of 9223372036854775808 bytes on a device"),
        (COMPLETE, {"dump": b"x" * 8192}, "it begins with b'xxx"),
        ("Dump failed.\x0bforged\n", NO_DUMP, "the kernel says: Dump failed."),
    ],
)
def test_a_missing_or_bad_dump_is_explained(tmp_path: Path, disk: Path, console: str, changes: dict[str, Any], words: str) -> None:
    write_dump(disk, **changes)
    text, names = kept(tmp_path, guest(disk, console))
    assert names == ["dump-g.txt"]
    assert text.startswith("no dump:\n")
    assert words in text


@pytest.mark.parametrize("kind", ["", "hang", "eof"])
def test_a_guest_that_did_not_panic_leaves_nothing(tmp_path: Path, disk: Path, kind: str) -> None:
    write_dump(disk)
    assert kept(tmp_path, guest(disk, "login: \n", kind)) == ("", [])


def test_an_os_without_dumps_leaves_nothing(tmp_path: Path, disk: Path) -> None:
    write_dump(disk)
    assert kept(tmp_path, guest(disk, COMPLETE, guest_os=Linux())) == ("", [])


def test_a_lost_host_is_named(tmp_path: Path, disk: Path) -> None:
    class Lost(LocalTransport):
        def run(self, *args: Any, **kwargs: Any) -> Completed:
            raise TransportError("ssh to lab dropped")

    assert kept(tmp_path, guest(disk, COMPLETE, transport=Lost())) == ("no dump:\nssh to lab dropped\n", ["dump-g.txt"])


def test_a_damaged_copy_is_not_kept(tmp_path: Path, disk: Path) -> None:
    class Cut(LocalTransport):
        def run(self, argv: Any, deadline: Deadline | None = None, **kwargs: Any) -> Completed:
            done = super().run(argv, deadline, **kwargs)
            return Completed(done.argv, 0, done.stdout[:-9], b"") if "gzip" in argv[2] else done

    write_dump(disk)
    text, names = kept(tmp_path, guest(disk, COMPLETE, transport=Cut()))
    assert names == ["dump-g.txt"]
    assert "damaged" in text


def test_a_full_disk_leaves_no_part_of_a_dump(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    write_dump(disk)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert kept(tmp_path, guest(disk, COMPLETE)) == ("no dump:\ng.vmcore.gz: No space left on device\n", ["dump-g.txt"])


def test_a_text_on_a_full_disk_is_left_out(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_text(path: Path, data: str) -> int:
        raise OSError(28, "No space left on device")

    write_dump(disk)
    monkeypatch.setattr(Path, "write_text", write_text)
    assert kept(tmp_path, guest(disk, COMPLETE))[1] == ["g.vmcore.gz"]


def test_a_worker_keeps_a_limited_number_of_dumps(tmp_path: Path, disk: Path) -> None:
    write_dump(disk)
    text, names = kept(tmp_path, guest(disk, COMPLETE), keptdump.MOST)
    assert names == ["dump-g.txt"]
    assert text == "no dump:\nthis worker keeps 10 dumps already: run the case alone\n"


def test_the_guest_cannot_add_lines(tmp_path: Path, disk: Path) -> None:
    write_dump(disk, panic=b"boom\nread it with: forged", kernel=b"k\r\tforged\n")
    text, _ = kept(tmp_path, guest(disk, COMPLETE))
    assert len(text.splitlines()) == 6
    assert "panic: boom read it with: forged\n" in text


def test_a_copy_is_not_unpacked_beyond_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip, "decompress", None)
    packed = gzip.compress(MINIDUMP.ljust(8 * keptdump.MIB, b"\0"))
    assert keptdump._copy_errors(packed, 8 * keptdump.MIB, MINIDUMP) == []
    assert keptdump._copy_errors(packed, 9000, MINIDUMP) == ["dom0 sent at least 1048576 bytes instead of 9000"]
    assert keptdump._copy_errors(packed, 9 * keptdump.MIB, MINIDUMP) == ["dom0 sent 8388608 bytes instead of 9437184"]


# -- the swap of the guest's own disks ------------------------------------------------------------------------------------

IN_SWAP = "panic: boom\nDumping 0 out of 481 MB:\nDump complete\n"
MIB = 1 << 20


def dump(size: int, content: bytes = DUMP, block: int = 512, **changes: object) -> bytes:
    """A dump device of ``size`` bytes with a dump at its end."""
    changes = {"length": len(content), "extent": len(content), "panic": b"boom", "block": block, **changes}
    sector = header(**changes).ljust(block, b"\0")
    return (sector + content.ljust(-(-len(content) // block) * block, b"\0") + sector).rjust(size, b"\0")


def image(path: Path, swap: bytes, *, table: str = "gpt") -> Path:
    """The disk of an image: boot code, a root of 70 KiB, and a swap."""
    match table:
        case "gpt":
            data = partitions.gpt([("freebsd-boot", b"b" * 4096), ("freebsd-ufs", b"u" * 71_680), ("freebsd-swap", swap)])
        case "mbr":
            data = partitions.mbr([partitions.Slice(0x83, b"u" * 71_680), partitions.Slice(0x82, swap)])
        case _:
            data = swap
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("table", "name"), [("gpt", "xbd0p3"), ("mbr", "xbd0s2"), ("", "xbd0")])
def test_the_dump_in_the_swap_of_an_image_is_kept(tmp_path: Path, table: str, name: str) -> None:
    path = image(tmp_path / "root.img", dump(MIB), table=table)
    before = path.read_bytes()
    text, names = kept(tmp_path, guest(path, IN_SWAP, vdev="xvda"))
    assert names == ["dump-g.txt", "g.vmcore.gz"], text
    assert gzip.decompress((tmp_path / "case/g.vmcore.gz").read_bytes()) == DUMP
    assert f"dump device: {name}\n" in text
    assert path.read_bytes() == before


def test_a_disk_without_table_and_with_large_sectors(tmp_path: Path) -> None:
    path = image(tmp_path / "swap.img", dump(MIB, block=4096), table="")
    assert kept(tmp_path, guest(path, IN_SWAP, vdev="xvdc"))[1] == ["dump-g.txt", "g.vmcore.gz"]


@pytest.mark.parametrize("last", [False, True])
def test_the_swap_counts_if_our_device_has_no_dump(tmp_path: Path, disk: Path, last: bool) -> None:
    """Whatever the order of the disks: rc.conf of the image names its swap."""
    write_dump(disk, **NO_DUMP)
    root = Disk(str(image(tmp_path / "root.img", dump(MIB))), "xvda")
    subject = guest(disk, IN_SWAP)
    subject.config.disks = (*subject.config.disks, root) if last else (root, *subject.config.disks)
    text, names = kept(tmp_path, subject)
    assert names == ["dump-g.txt", "g.vmcore.gz"], text
    assert "dump device: xbd0p3\n" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"panic": b"another"}, "xbd0p3 has an older dump, of the panic 'another'\n"),
        ({"panic": b"a\x1b[2J\nforged: line"}, "xbd0p3 has an older dump, of the panic 'a'\n"),
        ({"length": 3 * MIB, "extent": 3 * MIB}, "xbd0p3 has an older dump, of 3 MiB\n"),
        ({"magic": CLEARED}, "xbd0p3 has a dump that savecore has saved\n"),
        ({"magic": b"\0"}, "no dump of this panic in the swap of its disks: xbd0p3\n"),
        ({"key": 512}, "names an encryption key of 512 bytes"),
        ({"compression": 200}, "the trailer's compression is 200"),
        ({"content": b"x" * 8192}, "it begins with b'xxx"),
    ],
)
def test_another_dump_in_the_swap_is_explained(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = image(tmp_path / "root.img", dump(MIB, **changes))
    text, names = kept(tmp_path, guest(path, IN_SWAP, vdev="xvda"))
    assert names == ["dump-g.txt"]
    assert text.startswith("no dump:\n")
    assert words in text
    assert text.endswith("the kernel says: Dump complete\n")


def test_of_two_dumps_the_later_one_counts(tmp_path: Path) -> None:
    disks = []
    for name, vdev, time in (("a", "xvda", 1_700_000_300), ("b", "xvdb", 1_700_000_200)):
        disks.append(Disk(str(image(tmp_path / name, dump(MIB, time=time))), vdev))
    subject = guest(tmp_path, IN_SWAP)
    subject.config.disks = tuple(reversed(disks))
    assert "dump device: xbd0p3\n" in kept(tmp_path, subject)[0]


def test_a_large_dump_is_not_kept(tmp_path: Path) -> None:
    """On a sparse disk without a table, whose dump is larger than the limit."""
    length, path = keptdump.LIMIT * MIB + 4096, tmp_path / "swap.img"
    sector = header(length=length, extent=length, panic=b"boom")
    with path.open("wb") as file:
        file.seek(MIB)
        file.write(sector + MINIDUMP)
        file.seek(MIB + 512 + length)
        file.write(sector)
    text, names = kept(tmp_path, guest(path, IN_SWAP.replace("Dumping 0 ", "Dumping 256 "), vdev="xvda"))
    assert names == ["dump-g.txt"]
    assert "xbd0 has a dump of 256 MiB; dumps of at most 256 MiB are kept" in text


@pytest.mark.parametrize(
    ("compression", "begin", "words"), [(1, b"\x1f\x8b", "gzip -d g.vmcore.gz"), (2, b"\x28\xb5\x2f\xfd", "zstd -d")]
)
def test_a_dump_that_the_kernel_compressed_is_kept(tmp_path: Path, compression: int, begin: bytes, words: str) -> None:
    """dumpon -z and -Z: the kernel reserves the whole device, and the header has the length after compression."""
    content = begin.ljust(8192, b"z")
    swap = dump(MIB, content + bytes(65_536), compression=compression, length=8192, extent=8192 + 65_536)
    text, names = kept(
        tmp_path, guest(image(tmp_path / "root.img", swap), IN_SWAP.replace("Dumping 0 ", "Dumping 60 "), vdev="xvda")
    )
    assert names == ["dump-g.txt", "g.vmcore.gz"], text
    assert gzip.decompress((tmp_path / "case/g.vmcore.gz").read_bytes()) == content
    assert words in text


@pytest.mark.parametrize("text", ["panic: boom\nAutomatic reboot in 15 seconds - press a key\n", "panic: boom\nRebooting...\n"])
def test_nobody_waits_for_a_kernel_without_dump_device(tmp_path: Path, text: str) -> None:
    subject = guest(image(tmp_path / "root.img", bytes(MIB)), text, vdev="xvda")
    subject.scale = 1000.0
    assert "the kernel says: nothing about a dump\n" in kept(tmp_path, subject)[0]


def test_a_new_panic_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    """The console has both boots of a guest that the toolstack started again."""
    before = "panic: first\nDumping 1 out of 9 MB:\nDump complete\nRebooting...\n"
    subject = guest(image(tmp_path / "root.img", bytes(MIB)), f"{before}\npanic: boom\nDumping 0 out of 9 MB:\n", vdev="xvda")
    assert "but did not end it within 2 s" in kept(tmp_path, subject)[0]


def test_a_dump_that_changes_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    path = image(tmp_path / "root.img", dump(MIB))

    class Changing(LocalTransport):
        def run(self, argv: Any, deadline: Deadline | None = None, **kwargs: Any) -> Completed:
            done = super().run(argv, deadline, **kwargs)
            if "gzip" in argv[2]:
                image(path, dump(MIB, time=1_700_000_999))
            return done

    text, names = kept(tmp_path, guest(path, IN_SWAP, transport=Changing(), vdev="xvda"))
    assert names == ["dump-g.txt"]
    assert "the headers of the dump changed while it was read" in text


def test_a_damaged_table_and_a_readonly_disk_are_passed_over(tmp_path: Path) -> None:
    whole = image(tmp_path / "root.img", dump(MIB))
    damaged = tmp_path / "damaged.img"
    damaged.write_bytes(whole.read_bytes().replace(b"EFI PART\0\0\1\0", b"EFI PART\xff\xff\1\0"))
    subject = guest(damaged, IN_SWAP)
    subject.config.disks = (Disk(str(damaged), "xvda"), Disk(str(whole), "xvdb", readonly=True))
    text, names = kept(tmp_path, subject)
    assert names == ["dump-g.txt"]
    assert "no copy of the disk's GPT is good" in text
    subject.config.disks = (Disk(str(damaged), "xvda"), Disk(str(whole), "xvdb"))
    (tmp_path / "case/dump-g.txt").unlink()
    (tmp_path / "case").rmdir()
    assert kept(tmp_path, subject)[1] == ["dump-g.txt", "g.vmcore.gz"]


def test_a_guest_with_many_swaps_is_looked_at_for_a_limited_time(tmp_path: Path) -> None:
    path = tmp_path / "many.img"
    path.write_bytes(partitions.gpt([("freebsd-swap", b"s" * 512)] * 100))
    asked: list[str] = []

    class Counted(LocalTransport):
        def run(self, argv: Any, deadline: Deadline | None = None, **kwargs: Any) -> Completed:
            asked.append(argv[0])
            return super().run(argv, deadline, **kwargs)

    assert kept(tmp_path, guest(path, IN_SWAP, transport=Counted(), vdev="xvda"))[1] == ["dump-g.txt"]
    assert asked.count("dd") == 16, "one trailer of each"
