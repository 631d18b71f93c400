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
from harness.guests import keptdump
from harness.guests.os.base import GuestOS
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.guests.shape import Shape
from harness.guests.source import DiskImage, GuestSource
from harness.oracles.kerneldump import MINIDUMP
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


def source(profile: GuestOS, slot: int = -1) -> GuestSource:
    return GuestSource("x", profile, disks=(DiskImage(Path("/root.img"), slot=slot),), root="xbd0")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("kind", "slot"), [("pvh", -1), ("hvm", 4096)])
def test_a_freebsd_guest_gets_a_sparse_disk_and_its_name(kind: str, slot: int) -> None:
    given, shape = keptdump.equip(source(FreeBSD(), slot), Shape(kind, variables=(("a", "b"),)))
    disk = given.disks[1]
    assert (disk.vdev, disk.path.stat().st_size, disk.path.stat().st_blocks) == ("xvdo", SIZE, 0)
    assert shape.variables == (("dumpdev", "xbd14"), ("a", "b"))


@pytest.mark.parametrize(("profile", "kind"), [(Linux(), "pvh"), (FreeBSD(), "hvm")])
def test_other_guests_stay_as_they_are(profile: GuestOS, kind: str) -> None:
    given, shape = source(profile), Shape(kind)
    assert keptdump.equip(given, shape) == (given, shape)


class Console:
    """The end of a console."""

    def __init__(self, text: str, kind: str) -> None:
        self._data = text.encode()
        self.death = Death(kind, "boom") if kind else None  # type: ignore[arg-type]
        self.offset = len(self._data)

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


def guest(disk: Path, text: str, kind: str = "panic", transport: Any = None) -> Any:
    return SimpleNamespace(
        name="g", domid=1, scale=0.01, console=Console(text, kind), config=SimpleNamespace(disks=(Disk(str(disk), "xvdo"),)),
        host=SimpleNamespace(transport=transport or LocalTransport()),
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
    assert text.startswith("g.vmcore.gz: a dump of 8192 bytes, compressed by gzip\npanic: boom")
    assert "\x1b" not in text


def test_a_dump_is_kept_after_the_toolstack_restarted_the_guest(tmp_path: Path, disk: Path) -> None:
    write_dump(disk)
    assert kept(tmp_path, guest(disk, f"{COMPLETE}a new boot\n", kind=""))[1] == ["dump-g.txt", "g.vmcore.gz"]


@pytest.mark.parametrize(
    ("console", "changes", "words"),
    [
        ("panic: boom\n", NO_DUMP, "the kernel says: nothing about a dump"),
        ("Dumping 9 MB:..\n", NO_DUMP, "but not within 2 s that it ends"),
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


def test_a_guest_without_our_device_leaves_nothing(tmp_path: Path, disk: Path) -> None:
    subject = guest(disk, COMPLETE)
    subject.config.disks = (Disk(str(disk), "xvda"),)
    assert kept(tmp_path, subject) == ("", [])


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
    assert len(text.splitlines()) == 5
    assert "panic: boom read it with: forged\n" in text


def test_a_copy_is_not_unpacked_beyond_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip, "decompress", None)
    packed = gzip.compress(MINIDUMP.ljust(8 * keptdump.MIB, b"\0"))
    assert keptdump._copy_errors(packed, 8 * keptdump.MIB) == []
    assert keptdump._copy_errors(packed, 9000) == ["dom0 sent at least 1048576 bytes instead of 9000"]
    assert keptdump._copy_errors(packed, 9 * keptdump.MIB) == ["dom0 sent 8388608 bytes instead of 9437184"]
