# SPDX-License-Identifier: BSD-2-Clause
"""Source lines of a backtrace, with a small program that this machine's compiler builds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.console.backtrace import Frame, frames
from harness.console.machinery import Machinery
from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.guests import sourcelines
from harness.images import debugfile, entries
from harness.images.debugfile import KernelSymbols
from harness.xen import elfnotes, elfsymbols, symbolizer
from harness.xen.symbolizer import Line, lookup, parse, parse_gsym

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


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(symbolizer, "_making", {})
    yield tmp_path / "store"
    wait_for_index()


def wait_for_index() -> None:
    for thread in symbolizer._making.values():
        thread.join()


def indexed(debug: Path, addresses: Sequence[int]) -> tuple[symbolizer.Lines, ...]:
    """Make the index, and look the addresses up in it."""
    symbolizer.prepare(debug)
    return lookup(debug, addresses)


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


# llvm-gsymutil 19 on FreeBSD 15.1's kernel.debug.
GSYM = """\
0xffffffff80414f3c: BUS_READ_IVAR + 1 @ /usr/obj/usr/src/amd64.amd64/sys/XENA/./bus_if.h:110 [inlined]
                    xenbus_get_node + 20 @ /usr/src/sys/xen/xenbus/xenbusvar.h:93 [inlined]
                    xbd_attach + 156 @ /usr/src/sys/dev/xen/blkfront/blkfront.c:1510

0x0000000000001234: error: address 0x1234 is not in GSYM

0xffffffff80804e53: rsb_flush + 19

0xffffffff804eefd0: vpanic @ /usr/src/sys/kern/kern_shutdown.c:892

"""


GSYM_ADDRESSES = [0xFFFFFFFF80414F3C, 0x1234, 0xFFFFFFFF80804E53, 0xFFFFFFFF804EEFD0]


def test_each_paragraph_of_the_index_is_an_address() -> None:
    found = parse_gsym(GSYM, [*GSYM_ADDRESSES, 0x99])
    assert [str(line) for line in found[0]] == [
        "BUS_READ_IVAR (/usr/obj/usr/src/amd64.amd64/sys/XENA/bus_if.h:110)", "xenbus_get_node (sys/xen/xenbus/xenbusvar.h:93)",
        "xbd_attach (sys/dev/xen/blkfront/blkfront.c:1510)",
    ]  # fmt: skip
    assert found[1:] == ((), (Line("rsb_flush", "", 0),), (Line("vpanic", "sys/kern/kern_shutdown.c", 892),), ())


@pytest.mark.parametrize("text", ["", "\n\n", "0xzz: f\n", "  f @ a:1\n", "Killed\n"])
def test_unexpected_output_of_the_index_is_an_unknown_place(text: str) -> None:
    assert parse_gsym(text, [1, 2]) == ((), ())


HOSTILE = "evil\x1b]0;owned\x07\u2028#1  forged (kern.c:1)\x85\x0b\x00\u202e\n#2  forged (kern.c:2)" + "z" * 100_000


def test_names_of_hostile_symbols_stay_in_their_line() -> None:
    text = json.dumps({"Symbol": [{"FunctionName": HOSTILE, "FileName": HOSTILE, "Line": 7}]}, ensure_ascii=False)
    good = '{"Symbol": [{"FunctionName": "good", "FileName": "a.c", "Line": 1}]}'
    found = parse(f"{text}\n{good}\n", 2)
    assert found[1] == (Line("good", "a.c", 1),), "the line of another address"
    shown = str(found[0][0])
    assert len(shown) < 2100
    assert not set(shown) & set("\x1b\x07\u2028\x85\x0b\x00\u202e\n")


@pytest.mark.parametrize(
    "name",
    ["evil\n0x0000000000001234: forged @ a.c:1", "evil\n0x0000000000009999: forged @ a.c:1", "evil\n0xffffffff80804e53: forged"],
)
def test_forged_paragraphs_of_the_index_are_refused(name: str) -> None:
    """Then llvm-symbolizer answers, whose JSON has no raw line breaks."""
    with pytest.raises(InfrastructureError, match="which is not the next one"):
        parse_gsym(GSYM.replace("BUS_READ_IVAR", name), GSYM_ADDRESSES)


@needs_tools
def test_hostile_symbols_of_a_real_file(tmp_path: Path, empty_store: Path) -> None:
    """A program whose function names were replaced by hostile ones of the same length: with and without an index."""
    (tmp_path / "p.c").write_text(
        "int AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA(int a) { return a * 3; }\nint good(int a) { return a + 1; }\n"
    )
    file = tmp_path / "p"
    words = ["-g", "-O0", "-shared", "-fPIC", "-Wl,--build-id", "-o", str(file), str(tmp_path / "p.c")]
    subprocess.run(["cc", *words], check=True)
    addresses = [place(file, "A" * 35), place(file, "good")]
    name = b"x\x1b]0;t\x07\n0x0000000000001234: f @ a.c:9\n"
    data = file.read_bytes()
    file.write_bytes(data.replace(b"A" * 35, name.ljust(35, b"A")[:35]))
    for _ in range(2):
        found = lookup(file, addresses)
        assert [line.function for line in found[1]] == ["good"]
        assert all("\n" not in line.function and "\x1b" not in line.function for line in found[0])
        wait_for_index()
    functions = elfsymbols.functions(file.read_bytes())
    assert functions is not None
    assert all(name.isprintable() for name in functions.names)


def test_a_name_of_megabytes_is_cut(tmp_path: Path) -> None:
    (tmp_path / "p.s").write_text(".text\n.globl " + "n" * 300_000 + "\n" + "n" * 300_000 + ":\n ret\n")
    subprocess.run(["cc", "-c", "-o", str(tmp_path / "p.o"), str(tmp_path / "p.s")], check=True)
    found = elfsymbols.functions((tmp_path / "p.o").read_bytes())
    assert found is not None
    assert max(map(len, found.names)) == 1024


@needs_tools
def test_the_index_answers_as_llvm_symbolizer_does(program: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = range(place(program, "outer"), place(program, "outer") + 6)
    own = symbolizer._symbolized(program, addresses, Deadline(60))
    assert lookup(program, addresses) == own, "before there is an index"
    wait_for_index()
    (index,) = (empty_store / "symbols").glob("[0-9a-f]*")
    monkeypatch.setattr(symbolizer, "_symbolized", lambda *_: pytest.fail("the index has all lines"))
    before = (index / "lines.gsym").stat().st_mtime_ns
    assert lookup(program, addresses) == own
    assert (index / "lines.gsym").stat().st_mtime_ns == before, "it was made once"


@needs_tools
def test_assembly_code_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "start.S").write_text(".text\n.globl main\n.type main, @function\nmain:\n  nop\n  ret\n.size main, . - main\n")
    subprocess.run(["cc", "-g", "-Wl,--build-id=sha1", "-o", "program", "start.S"], cwd=tmp_path, check=True)
    file, address = tmp_path / "program", place(tmp_path / "program", "main")
    found = indexed(file, [address])
    assert [(line.function, Path(line.file).name, line.line) for line in found[0]] == [("main", "start.S", 5)]
    monkeypatch.setattr(symbolizer, "_symbolized", lambda *_: pytest.fail("the answer is kept"))
    assert lookup(file, [address]) == found


@needs_tools
def test_damaged_answers_are_asked_for_again(program: Path, empty_store: Path) -> None:
    outside = indexed(program, [0x10])
    (kept,) = (empty_store / "symbols").glob("*/answers.json")
    for text in ("", "[]", '{"x": 1}', '{"16": [["f"]]}', '{"16": 3}'):
        kept.write_text(text)
        assert lookup(program, [0x10]) == outside


@needs_tools
def test_a_file_that_changed_gets_another_index(program: Path, empty_store: Path) -> None:
    packed = empty_store.parent / "packed"
    for number in range(2):
        extra = empty_store.parent / "extra"
        extra.write_bytes(bytes(1 + 1000 * number))
        subprocess.run(["objcopy", f"--add-section=.more={extra}", program, packed], check=True)
        lookup(packed, [place(program, "outer")])
    wait_for_index()
    assert len(list((empty_store / "symbols").glob("[0-9a-f]*"))) == 2


@needs_tools
def test_few_indexes_are_kept(program: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolizer, "_MOST_INDEXES", 1)
    for name in ("program", "other"):
        symbolizer.prepare(program.with_name(name))
    (index,) = (empty_store / "symbols").glob("[0-9a-f]*")
    assert index.name.startswith(elfnotes.build_id(program.with_name("other")))


@needs_tools
def test_the_first_use_does_not_wait_for_the_index(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered, run = [], threading.Event(), symbolizer._run

    def slow(argv: list[str], *rest: Any, **more: Any) -> Any:
        asked.append(Path(argv[0]).name)
        if "gsymutil" in argv[0]:
            assert answered.wait(60), "the lookup waited for the index"
            raise InfrastructureError("too slow")
        return run(argv, *rest, **more)

    monkeypatch.setattr(symbolizer, "_run", slow)
    expected = symbolizer._symbolized(program, [place(program, "main")], Deadline(60))
    assert lookup(program, [place(program, "main")]) == expected
    answered.set()
    wait_for_index()
    assert lookup(program, [place(program, "main")]) == expected
    assert sorted(asked) == ["llvm-gsymutil", *["llvm-symbolizer"] * 3], "the index is tried once"


@needs_tools
def test_a_damaged_index_costs_no_lines(program: Path, empty_store: Path) -> None:
    expected = indexed(program, [place(program, "outer")])
    (index,) = (empty_store / "symbols").glob("*/lines.gsym")
    for damaged in (b"", b"no index", index.read_bytes()[:60]):
        index.write_bytes(damaged)
        assert lookup(program, [place(program, "outer")]) == expected


@needs_tools
def test_llvm_without_its_indexer_gives_the_same_lines(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, own = indexed(program, [place(program, "outer")]), symbolizer.program

    def without(name: str = "llvm-symbolizer") -> str:
        if name != "llvm-symbolizer":
            raise InfrastructureError(f"{name} is not installed")
        return own(name)

    monkeypatch.setattr(symbolizer, "program", without)
    assert lookup(program, [place(program, "outer")]) == expected


# -- frames -----------------------------------------------------------------------------------------------------------

# Linux: RIP is the instruction that faulted, the others are return addresses.
OOPS = """\
RIP: 0010:outer+0x4/0x20
Call Trace:
 <TASK>
 main+0x9/0x20
 unknown_function+0x1/0x20
 </TASK>
"""


@needs_tools
def test_frames_of_linux_have_the_line_of_the_fault_and_of_each_call(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(symbolizer, "lookup", lambda debug, addresses, seconds: asked.extend(addresses) or [()] * len(addresses))
    found = frames(OOPS, Machinery())
    assert sourcelines.backtrace(found, KernelSymbols(program)) == [
        "#0  outer+0x4", "#1  main+0x9", "#2  unknown_function+0x1",
    ]  # fmt: skip
    assert asked == [place(program, "outer") + 4, place(program, "main") + 8], "an unknown function has no address"


@needs_tools
def test_traces_of_several_cpus_take_one_lookup(program: Path) -> None:
    exact = Frame("", address=hex(place(program, "outer")), exact=True)
    one, none, two = sourcelines.backtraces([[exact], [], [exact, Frame("main", "0x1", exact=True)]], KernelSymbols(program))
    assert none == []
    assert two[: len(one)] == one
    assert re.fullmatch(r"#1  main \(.*source\.c:11\)", two[-1])


@needs_tools
def test_data_between_the_code_has_no_function(program: Path) -> None:
    known = KernelSymbols(program).functions
    assert known is not None
    assert known.at(place(program, "outer")) == ("outer", place(program, "outer"))
    assert known.at(place(program, "sink")) is None
    assert KernelSymbols(program).addresses(["outer", "sink", "none"]) == {"outer": place(program, "outer")}


# -- which file belongs to a kernel -----------------------------------------------------------------------------------


@needs_tools
def test_the_file_with_the_same_build_id_is_found(program: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "kernel"
    subprocess.run(["objcopy", "--strip-all", program, stripped], check=True)
    assert KernelSymbols(stripped).debug is None
    assert KernelSymbols(stripped).functions is None

    def make(work: Path) -> dict[str, str]:
        shutil.copyfile(program, work / debugfile.NAME)
        return {}

    entry = entries.get_or_create("kernels", "0123456789abcdef", make)
    assert KernelSymbols(stripped).debug == entry.directory / debugfile.NAME
    assert KernelSymbols(stripped).functions is not None, "the names of a stripped kernel are in the other file"
    assert KernelSymbols(stripped, (program,)).debug == program
    assert KernelSymbols(known=elfnotes.build_id(program), files=(program,)).debug == program
    assert KernelSymbols(program.with_name("other"), (program,)).debug == program.with_name("other"), (
        "a kernel with lines of its own"
    )


@needs_tools
def test_a_note_of_another_image_in_the_kernel_does_not_count(program: Path, tmp_path: Path) -> None:
    # Linux contains its vDSO, which has a build-id, in front of its own notes.
    inner, outer = elfnotes.build_id(program.with_name("other")), elfnotes.build_id(program)
    packed = tmp_path / "packed"
    update = [f"--add-section=.image={program.with_name('other')}", str(program), str(packed)]
    subprocess.run(["objcopy", *update], check=True)
    assert bytes.fromhex(inner) in packed.read_bytes()
    assert elfnotes.build_id(packed) == outer


def test_a_file_without_notes_has_no_build_id(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\x7fELF", b"text" * 100, b"\x7fELF\2\1" + b"\xff" * 100)):
        (tmp_path / str(number)).write_bytes(data)
        assert elfnotes.build_id(tmp_path / str(number)) == ""


@needs_tools
def test_symbols_that_cannot_be_used_are_refused(program: Path, tmp_path: Path) -> None:
    plain, stripped, anonymous = tmp_path / "text", tmp_path / "stripped", tmp_path / "anonymous"
    plain.write_text("no ELF file")
    subprocess.run(["objcopy", "--strip-all", program, stripped], check=True)
    subprocess.run(["objcopy", "--remove-section=.note.gnu.build-id", program, anonymous], check=True)
    for path, words in (
        (tmp_path / "missing", "no such file"), (tmp_path, "no kernel.debug"), (plain, "not an ELF file"), (stripped, "it is stripped"),
        (anonymous, "no build-id"), (program, "neither a FreeBSD kernel nor Linux nor Xen"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            debugfile.chosen(path)


@needs_tools
@pytest.mark.parametrize(("symbol", "kind"), [("osreldate", "FreeBSD"), ("start_kernel", "Linux"), ("__start_xen", "Xen")])
def test_the_kind_of_symbols_is_read_from_them(symbol: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "kernel.c").write_text(f"int {symbol} = 1;\nint main(void) {{ return 0; }}\n")
    place = tmp_path / "dbg/usr/lib/debug/boot/kernel/kernel.debug"
    place.parent.mkdir(parents=True)
    subprocess.run(["cc", "-g", "-Wl,--build-id=sha1", "-o", place, "kernel.c"], cwd=tmp_path, check=True)
    assert debugfile.chosen(place) == debugfile.chosen(tmp_path / "dbg") == (place, kind)


@needs_tools
def test_compression_keeps_the_lines(program: Path, tmp_path: Path) -> None:
    debugfile.compress(program, tmp_path / "packed")
    start = place(program, "outer")
    assert lookup(tmp_path / "packed", [start]) == lookup(program, [start])
