# SPDX-License-Identifier: BSD-2-Clause
"""jinja2 for the pages, and how they show an outcome."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from types import CodeType

import jinja2
from jinja2.bccache import Bucket

from harness import paths
from harness.results.model import Outcome
from harness.safetext import plain

# The CSS class of each outcome in strips and matrices, and a letter for readers who do not see the colours.
SQUARES = {
    Outcome.PASSED: ("p", "·"),
    Outcome.FAILED: ("f", "F"),
    Outcome.HARNESS: ("h", "H"),
    Outcome.INFRASTRUCTURE: ("i", "I"),
    Outcome.KNOWN: ("k", "k"),
    Outcome.SKIPPED: ("s", " "),
}


def environment() -> jinja2.Environment:
    """jinja2 for our templates. It escapes every value."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("harness.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Guest output may be anywhere, so remove control characters from every text.
        finalize=lambda value: plain(value) if type(value) is str else value,
        bytecode_cache=_compiled(),
    )


class _Compiled(jinja2.FileSystemBytecodeCache):
    """Compiled templates in the store. Without it, or if it is damaged, a page takes 0.07 s more."""

    def load_bytecode(self, bucket: Bucket) -> None:
        try:
            super().load_bytecode(bucket)
        except Exception:  # what a damaged file raises depends on its bytes
            bucket.reset()
        if not isinstance(bucket.code, CodeType):
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):
            super().dump_bytecode(bucket)


def _compiled() -> _Compiled | None:
    """None if the store cannot be written."""
    try:
        # The code depends on jinja2 and on the options above, too.
        version = hashlib.sha256(Path(__file__).read_bytes() + jinja2.__version__.encode()).hexdigest()[:12]
        directory = paths.store() / "templates" / version
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return _Compiled(str(directory))
