# SPDX-License-Identifier: BSD-2-Clause
"""jinja2 for the pages, and how they show an outcome."""

from __future__ import annotations

import jinja2

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
    )
