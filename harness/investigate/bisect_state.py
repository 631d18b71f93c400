# SPDX-License-Identifier: BSD-2-Clause
"""The answers of a bisection on disk, so that it can be stopped and taken up again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.investigate.bisection import State


@dataclass
class Notebook:
    """``state`` is what is known; each answer is on disk before the next question is asked."""

    path: Path
    state: State

    def answered(self, which: int, outcome: str) -> None:
        self.state = self.state.answered(which, outcome)
        descriptor, partial = tempfile.mkstemp(dir=self.path.parent, prefix=".bisect.")
        with os.fdopen(descriptor, "w") as file:
            json.dump({"names": self.state.names, "answers": self.state.answers}, file, indent=1)
        Path(partial).replace(self.path)


def open_(where: Path, case: str, cell: str, option: str, names: tuple[str, ...], *, restart: bool = False) -> Notebook:
    """The notebook of this very question, with what was answered before. Raises UsageError for one that is damaged."""
    where.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\0".join((case, cell, option, *names)).encode()).hexdigest()[:12]
    path = where / f"bisect-{key}.json"
    if restart:
        path.unlink(missing_ok=True)
    try:
        data = json.loads(path.read_text())
        answers = tuple((int(which), str(outcome)) for which, outcome in data["answers"])
        if any(not 0 <= which < len(names) for which, _ in answers):
            raise ValueError("an answer about no build")
    except FileNotFoundError:
        return Notebook(path, State(names))
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: {exc}", hint="--restart forgets it") from exc
    return Notebook(path, State(names, answers))
