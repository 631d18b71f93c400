# SPDX-License-Identifier: BSD-2-Clause
"""Untrusted archives: what is read, and the limits of a header, of the data and of the time. All archives here are harmless."""

from __future__ import annotations

import ast
import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import untar
from harness.errors import DeadlineExpired
from harness.untar import BadArchive, Limited

ROOT = Path(__file__).parents[2]


def plain_tar(*names: str, data: bytes = b"12345") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return out.getvalue()


def header(**values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo("name")
    info.offset = 512
    for name, value in values.items():
        setattr(info, name, value)
    return info


@pytest.mark.parametrize("packer", [bytes, lzma.compress, gzip.compress, bz2.compress], ids=["plain", "xz", "gzip", "bzip2"])
def test_members_come_with_their_contents(tmp_path: Path, packer: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a").write_bytes(packer(plain_tar("one", "deep/" * 60 + "two")))
    found = {member.name: contents and contents.read() for member, contents in untar.members(tmp_path / "a", 1 << 20)}
    assert found == {"one": b"12345", "deep/" * 60 + "two": b"12345", "link": None}


@pytest.mark.parametrize("packer", [lzma.compress, gzip.compress, bz2.compress], ids=["xz", "gzip", "bzip2"])
def test_a_damaged_archive(tmp_path: Path, packer: Callable[[bytes], bytes]) -> None:
    whole = packer(bytes(range(256)) * 4000)
    for data in (whole, whole[:10], whole[:6] + bytes(1000), whole[:40] + bytes(1000)):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(tarfile.TarError):
            list(untar.members(tmp_path / "a", 1 << 30))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": -1}, "claims to have -1 bytes"),
        ({"size": 1001}, "claims to have 1001 bytes"),
        ({"offset": 0}, "does not follow"),
        ({"sparse": [(0, 1)]}, "is sparse"),
        ({"pax_headers": {str(n): "" for n in range(65)}}, "65 pax records"),
    ],
    ids=["negative", "absurd", "no progress", "sparse", "records"],
)
def test_a_header_that_is_refused(values: dict[str, Any], says: str) -> None:
    untar.check(header(size=1000), 0, 1000)
    with pytest.raises(BadArchive, match=says):
        untar.check(header(**values), 0, 1000)


def test_reads_and_seeks_that_are_refused() -> None:
    file = Limited(io.BytesIO(bytes(100_000)), 90_000)
    with pytest.raises(BadArchive, match="negative"):
        file.read(-1)
    for _ in range(32):
        assert len(file.read(512)) == 512
    with pytest.raises(BadArchive, match="more than 16 KiB"):
        file.read(512)
    file.expect_contents()
    assert len(file.read(40_000)) == 40_000
    file.expect_header()
    assert file.seek(file.tell()) == 16384 + 40_000
    with pytest.raises(BadArchive, match="begins before"):
        file.seek(0)
    for position in (90_001, 1 << 70):
        with pytest.raises(BadArchive, match="above the limit"):
            file.seek(position)
    file.expect_contents()
    with pytest.raises(BadArchive, match="above the limit"):
        file.read(90_000)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, IndexError, ValueError, OverflowError, TypeError])
def test_errors_of_tarfile_become_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail(_: object) -> None:
        raise error

    (tmp_path / "a").write_bytes(plain_tar("one"))
    monkeypatch.setattr(tarfile.TarFile, "next", fail)
    with pytest.raises(BadArchive, match=rf"invalid header \({error.__name__}\)"):
        list(untar.members(tmp_path / "a", 1 << 20))


def test_members_are_not_kept_and_the_time_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    open_ = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda **more: opened.append(open_(**more)) or opened[-1])
    (tmp_path / "a").write_bytes(plain_tar(*map(str, range(20))))
    kept = [len(opened[-1].members) for _ in untar.members(tmp_path / "a", 1 << 20)]
    assert kept == [0] * 21
    monkeypatch.setattr(untar, "_SECONDS", 0.0)
    with pytest.raises(DeadlineExpired, match="the members of a"):
        list(untar.members(tmp_path / "a", 1 << 20))


def test_only_this_module_reads_archives_with_tarfile() -> None:
    reading = set()
    for path in ROOT.glob("harness/**/*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            words = [ast.unparse(item) for item in (*call.args, *(word.value for word in call.keywords if word.arg == "mode"))]
            if ast.unparse(call.func) == "tarfile.open" and not any(word.startswith("'w") for word in words):
                reading.add(str(path.relative_to(ROOT)))
    assert reading == {"harness/untar.py"}
