# SPDX-License-Identifier: BSD-2-Clause
"""Start a program of :mod:`harness.dom0` in dom0."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from harness.deadline import Deadline
from harness.errors import TransportError
from harness.transport import Completed, Stream, Transport

PACKAGE = "harness.dom0"

# Arguments: name and size of the program, then the program's own. The text arrives on stdin, because some ssh servers (dropbear)
# accept a command line of 9000 bytes at most. It is not copied to a file: a file would have to be put into every restored lab and
# removed after the last use. Only built-in modules are imported: others cost tenths of a second under emulation.
_BOOTSTRAP = """
import os, sys
size, text = int(sys.argv[2]), b""
while len(text) < size:
    part = os.read(0, size - len(text))
    if not part:
        sys.exit("%s: the connection ended before the program had arrived" % sys.argv[1])
    text += part
sys.argv[:3] = sys.argv[1:2]
exec(text)
"""
_MODULES = """
import sys
for name, text in {imported!r}:
    module = sys.modules[name] = type(sys)(name)
    exec(compile(text, name, "exec"), module.__dict__)
exec(compile({program!r}, {name!r}, "exec"), {{"__name__": "__main__"}})
"""


def run(
    transport: Transport, module: ModuleType, *arguments: str, deadline: Deadline | None = None, wrapper: Sequence[str] = ()
) -> Completed:
    """Run ``module`` in dom0 to its end, with ``arguments`` as its ``sys.argv[1:]``. Its stdin is empty.

    ``wrapper`` is a command that runs the command line behind it, for example ``ip netns exec NAME``. Raises as Transport.run().
    """
    return transport.run([*wrapper, *_command(module, arguments)], deadline, stdin=bundle(module))


def start(transport: Transport, module: ModuleType, *arguments: str, wrapper: Sequence[str] = ()) -> Stream:
    """Start ``module`` in dom0 and return its standard streams. Arguments as for :func:`run`; closing the stream ends the program.

    If dom0 cannot start Python, the stream contains the error message of its shell. Raises as Transport.open().
    """
    stream = transport.open([*wrapper, *_command(module, arguments)])
    with contextlib.suppress(TransportError):
        stream.write(bundle(module))
    return stream


def bundle(module: ModuleType) -> bytes:
    """The Python text that defines all modules of :mod:`harness.dom0` that ``module`` imports, and then runs ``module``."""
    return _bundle(module.__name__)


@cache
def _bundle(name: str) -> bytes:
    imported = [(other, _source(other)) for other in _imports(name)]
    return _MODULES.format(imported=imported, program=_source(name), name=name).encode()


def _imports(name: str) -> list[str]:
    """The modules of the package that ``name`` imports, directly or not. Each follows those that it imports itself."""
    found: list[str] = []
    for node in ast.walk(ast.parse(_source(name))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            found += [*_imports(str(node.module)), str(node.module)]
    return list(dict.fromkeys(found))


def _source(name: str) -> str:
    return (Path(__file__).parent.parent / "dom0" / f"{name.removeprefix(f'{PACKAGE}.')}.py").read_text("utf-8")


def _command(module: ModuleType, arguments: Sequence[str]) -> list[str]:
    name = module.__name__.removeprefix(f"{PACKAGE}.")
    return ["python3", "-S", "-E", "-c", _BOOTSTRAP, name, str(len(bundle(module))), *arguments]
