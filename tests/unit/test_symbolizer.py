# SPDX-License-Identifier: BSD-2-Clause
"""Source lines of a backtrace, with a small program that this machine's compiler builds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import InfrastructureError, UsageError
from harness.images import debugfile, entries
from harness.xen import symbolizer
from harness.xen.symbolizer import Line, lookup, parse

# The lines are counted below: keep the text as it is.
SOURCE = """\
volatile int sink;
static inline __attribute__((always_inline)) void poke(int value)
{
    sink = value;
}
__attribute__((noinline)) int outer(int value)
{
    poke(value);
    return value + 1;
}
int main(void) { return outer(3); }
"""

needs_tools = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("nm") and [*Path("/usr/lib").glob("llvm-*/bin/llvm-symbolizer")]),
    reason="needs cc, nm and llvm-symbolizer (Debian: gcc binutils llvm)",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("program")
    (directory / "source.c").write_text(SOURCE)
    for name, text in (("program", ""), ("other", "int more;\n")):
        (directory / "source.c").write_text(SOURCE + text)
        subprocess.run(["cc", "-g", "-O1", "-Wl,--build-id=sha1", "-o", name, "source.c"], cwd=directory, check=True)
    return directory / "program"


def place(program: Path, name: str) -> int:
    table = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
    return int(re.search(rf"^([0-9a-f]+) \w {name}$", table, re.MULTILINE)[1], 16)  # type: ignore[index]


@needs_tools
def test_an_inlined_caller_has_its_own_line(program: Path) -> None:
    start = place(program, "outer")
    found = lookup(program, range(start, start + 6))
    chains = {tuple((line.function, line.line) for line in lines) for lines in found}
    assert any(chain[0][0] == "poke" and chain[-1] == ("outer", 8) for chain in chains if chain), chains
    assert all(line.file.endswith("source.c") for lines in found for line in lines)


@needs_tools
def test_an_address_outside_the_code_has_no_line(program: Path) -> None:
    outside, inside = lookup(program, [0xFFFF_FFFF_0000_0000, place(program, "outer")])
    assert not any(line.file or line.line for line in outside), "a symbol at most"
    assert inside[-1].line > 0


@needs_tools
def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernel.debug").write_text("no ELF file")
    with pytest.raises(InfrastructureError, match=r"kernel\.debug"):
        lookup(tmp_path / "kernel.debug", [0x1000])


def test_no_address_needs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolizer, "program", lambda: pytest.fail("not needed"))
    assert lookup(Path("none"), []) == ()


@pytest.mark.parametrize(
    "text", ["", "not json\n", "[]\n7\n", '{"Symbol": 3}\n', '{"Symbol": [3, {}]}\n', '{"Symbol": [{"Line": "x"}]}\n']
)
def test_unexpected_output_is_an_unknown_place(text: str) -> None:
    assert parse(text, 3) == ((), (), ())


def test_a_path_is_relative_to_the_source_tree() -> None:
    text = '{"Symbol": [{"FunctionName": "xbd_free", "FileName": "/usr/src/sys/dev/xen/blkfront/blkfront.c", "Line": 451}]}\n'
    assert parse(text, 1) == ((Line("xbd_free", "sys/dev/xen/blkfront/blkfront.c", 451),),)
    assert str(parse(text, 1)[0][0]) == "xbd_free (sys/dev/xen/blkfront/blkfront.c:451)"


# -- which file belongs to a kernel -----------------------------------------------------------------------------------


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@needs_tools
def test_the_file_with_the_same_build_id_is_found(program: Path, empty_store: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "kernel"
    subprocess.run(["objcopy", "--strip-debug", program, stripped], check=True)
    assert debugfile.find(stripped) is None

    def make(work: Path) -> dict[str, str]:
        shutil.copyfile(program, work / debugfile.NAME)
        return {}

    entry = entries.get_or_create("kernels", "0123456789abcdef", make)
    assert debugfile.find(stripped) == entry.directory / debugfile.NAME
    assert debugfile.find(stripped, [program]) == program
    assert debugfile.find(program.with_name("other")) is None, "the store has another build"


@needs_tools
def test_symbols_of_another_build_are_refused(program: Path, empty_store: Path) -> None:
    with pytest.raises(UsageError, match="another build"):
        debugfile.find(program, [program.with_name("other")])
    with pytest.raises(UsageError, match="no such file"):
        debugfile.find(program, [program.with_name("missing")])


@needs_tools
def test_an_unpacked_set_of_a_release_is_searched(program: Path, empty_store: Path, tmp_path: Path) -> None:
    place = tmp_path / "dbg/usr/lib/debug/boot/kernel/kernel.debug"
    place.parent.mkdir(parents=True)
    shutil.copyfile(program, place)
    assert debugfile.find(program, [tmp_path / "dbg"]) == place


@needs_tools
def test_compression_keeps_the_lines(program: Path, tmp_path: Path) -> None:
    debugfile.compress(program, tmp_path / "packed", symbolizer_bindir())
    start = place(program, "outer")
    assert lookup(tmp_path / "packed", [start]) == lookup(program, [start])


def symbolizer_bindir() -> Path:
    return Path(symbolizer.program()).parent
