# SPDX-License-Identifier: BSD-2-Clause
"""The programs of harness.dom0: Python 3.7 and its standard library suffice, and one launcher starts them all."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.deadline import Deadline
from harness.dom0 import (
    cleanup,
    gdb_stub,
    lease_agent,
    lease_table,
    netpeer,
    port_command,
    pygrub_fuzz,
    pygrub_recorder,
    read_memory,
    scan_pages,
    tap_relay,
    tap_wire,
    xenstore_recorder,
    xenstore_writer,
)
from harness.errors import CommandFailed
from harness.transport.local import LocalTransport
from harness.xen import dom0_program

DOM0 = Path(netpeer.__file__).parent
MODULES = sorted(DOM0.glob("*.py"))
PROGRAMS = (
    gdb_stub, lease_agent, netpeer, port_command, pygrub_fuzz, pygrub_recorder, read_memory, scan_pages, tap_relay, tap_wire, xenstore_recorder, xenstore_writer,
)  # fmt: skip
# dropbear 2022.83 rejects longer command lines.
COMMAND_LINE = 9000


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_need_only_python_3_7(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 7))
    compile(tree, str(path), "exec")
    problems = [*imports_elsewhere(tree), *newer_than_3_7(tree)]
    assert not problems, f"{path.name}: {problems}"


def imports_elsewhere(tree: ast.AST) -> Iterator[str]:
    """Imports of anything except the standard library and ``from harness.dom0.X import Y``."""
    for node in ast.walk(tree):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
            if node.level == 0 and re.fullmatch(r"harness\.dom0\.\w+", str(node.module)):
                continue
        yield from (name for name in names if name.partition(".")[0] not in sys.stdlib_module_names)


def newer_than_3_7(tree: ast.AST) -> Iterator[str]:
    """Known names that a later Python added; the grammar does not show them. Annotations are not evaluated, so they are left out."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in BUILTIN_GENERICS:
            yield f"{node.value.id}[...] outside of an annotation (3.9)"
        if isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix", "randbytes", "is_relative_to"):
            yield f"{node.attr} (3.9)"
        if isinstance(node, ast.keyword) and node.arg in ("missing_ok", "strict", "dirs_exist_ok"):
            yield f"{node.arg}= (3.8 or later)"


BUILTIN_GENERICS = ("tuple", "list", "dict", "set", "frozenset", "type")


def test_the_check_finds_what_3_7_lacks() -> None:
    text = "def f(a: tuple[int, int]) -> list[str]:\n    return a\nAddress = tuple[str, int]\n'x'.removeprefix('y')\nimport yaml\n"
    tree = ast.parse(text)
    assert [*imports_elsewhere(tree)] == ["yaml"]
    assert [*newer_than_3_7(tree)] == ["tuple[...] outside of an annotation (3.9)", "removeprefix (3.9)"]


def test_every_module_is_a_program_or_part_of_one() -> None:
    known = {Path(str(module.__file__)) for module in (*PROGRAMS, cleanup, lease_table)}
    assert known == {path for path in MODULES if path.stem != "__init__"}
    assert "import" not in re.sub(r'""".*?"""', "", (DOM0 / "__init__.py").read_text(), flags=re.DOTALL), "dom0 has no package"
    for module in PROGRAMS:
        text = Path(str(module.__file__)).read_text()
        assert text.endswith('if __name__ == "__main__":\n    main()\n'), f"{module.__name__} does nothing when it is started"


def test_a_program_brings_the_modules_that_it_imports(tmp_path: Path) -> None:
    """Without both limits the capacity follows from `xl info`; a machine without Xen has none."""
    request = {"mode": "survey", "base": str(tmp_path), "memory_limit": 7}
    for limits, memory in (({"vcpus_limit": 1}, 7), ({}, 0)):
        done = dom0_program.run(LocalTransport(), lease_agent, json.dumps(request | limits))
        found = json.loads(done.text)
        assert (found["leases"], found["orphans"], found["capacity"]["memory"]) == ([], {}, memory)


def test_the_network_peer_runs() -> None:
    done = dom0_program.run(LocalTransport(), netpeer, "send_datagrams", "127.0.0.1", "9", "0", "7", "0")
    found = ast.literal_eval(done.text)
    assert (found["bytes"], found["error"]) == (0, "")


def test_pygrub_recorder_reports_what_starts_after_it(tmp_path: Path) -> None:
    (tmp_path / "pygrub").write_text("import time; print('up', flush=True); time.sleep(60)")
    stream = dom0_program.start(LocalTransport(), pygrub_recorder)
    process = None
    try:
        assert stream.read(100, 60) == b"recording\n"
        process = subprocess.Popen([sys.executable, tmp_path / "pygrub"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        # Many times the interval of the program.
        time.sleep(1)
        deadline = Deadline(20)
        stream.write(b".")
        text = b""
        while data := stream.read(4096, deadline.remaining):
            text += data
    finally:
        stream.close()
        if process is not None:
            process.kill()
            process.communicate()
    uid = re.search(r"^Uid:\s+\d+\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert uid is not None
    assert text.decode() == f"{uid[1]} /\n"


def test_pygrub_fuzz_runs_pygrub_with_the_site_packages(tmp_path: Path) -> None:
    """The launcher starts Python without them (-S), but Xen's modules may be installed there."""
    (tmp_path / "pygrub").write_text("import sys\nsys.exit(0 if any(path.endswith('-packages') for path in sys.path) else 77)\n")
    (tmp_path / "image").write_bytes(bytes(range(256)) * 100)
    words = [str(tmp_path / "image"), "menu", "0", "3", str(tmp_path / "scratch"), "100", "50", str(tmp_path / "pygrub")]
    done = dom0_program.run(LocalTransport(), pygrub_fuzz, *words, deadline=Deadline(60))
    assert json.loads(done.text)["counts"] == {"0": 3}


@pytest.mark.skipif(Path("/dev/xen").exists(), reason="this is a dom0")
@pytest.mark.parametrize(
    ("module", "arguments", "error"),
    [
        (xenstore_writer, ("/a", "1", "2"), "/dev/xen/xenbus"),
        (read_memory, ("1", "1000", "0:8"), "libxenforeignmemory"),
        (scan_pages, ("1", "0", "1", "/nonexistent", "word"), "libxenforeignmemory"),
    ],
    ids=("xenstore_writer", "read_memory", "scan_pages"),
)
def test_a_program_that_fails_says_why(module: ModuleType, arguments: tuple[str, ...], error: str) -> None:
    with pytest.raises(CommandFailed, match=error) as failure:
        dom0_program.run(LocalTransport(), module, *arguments)
    assert f'File "{module.__name__}", line ' in str(failure.value), "the traceback names the module"


def test_command_lines_fit_into_an_ssh_server_s_limit() -> None:
    for module in PROGRAMS:
        command = dom0_program._command(module, ["x"] * 20)
        assert sum(len(word) + 3 for word in command) < COMMAND_LINE // 4
        assert command[5] == module.__name__.rpartition(".")[2], "the process list of dom0 names the program"


def test_the_wrapper_runs_the_program_and_stdin_ends_behind_it() -> None:
    done = dom0_program.run(
        LocalTransport(),
        netpeer,
        "send_datagrams",
        "127.0.0.1",
        "9",
        "0",
        "7",
        "0",
        wrapper=["sh", "-c", 'echo first; exec "$@"', "sh"],
    )
    assert done.text.splitlines()[0] == "first"


def test_a_connection_that_ends_early_is_an_error() -> None:
    command = dom0_program._command(netpeer, ["recv"])
    done = LocalTransport().run(command, stdin=dom0_program.bundle(netpeer)[:100], check=False)
    assert done.status == 1
    assert done.stderr == b"netpeer: the connection ended before the program had arrived\n"


def test_modules_come_before_their_users() -> None:
    names = [node.value for node in ast.walk(ast.parse(dom0_program.bundle(lease_agent))) if isinstance(node, ast.Constant)]
    found = [name for name in names if isinstance(name, str) and re.fullmatch(r"harness\.dom0\.\w+", name)]
    assert found == ["harness.dom0.cleanup", "harness.dom0.lease_table", "harness.dom0.lease_agent"]
    assert importlib.import_module("harness.dom0.cleanup") is cleanup
