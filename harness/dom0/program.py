# SPDX-License-Identifier: BSD-2-Clause
"""How a module of this package runs in dom0."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType


def command(module: ModuleType, *words: str) -> list[str]:
    """The command line for dom0 that runs ``module``, which imports nothing but Python's standard library, with these arguments.

    Its text is an argument: a file would have to be there for every use, also in a lab that was put back, and to go with the last.
    """
    return ["python3", "-S", "-E", "-c", Path(str(module.__file__)).read_text(), *words]
