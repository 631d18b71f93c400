# SPDX-License-Identifier: BSD-2-Clause
"""Save the answers of a bisection, so that it can be interrupted and resumed."""

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
class SavedBisection:
    """A bisection whose answers are written to ``path`` as they arrive."""

    path: Path
    state: State

    def answered(self, which: int, outcome: str) -> None:
        """Add and save an answer. Arguments as for State.answered()."""
        self.state = self.state.answered(which, outcome)
        descriptor, partial = tempfile.mkstemp(dir=self.path.parent, prefix=".bisect.")
        with os.fdopen(descriptor, "w") as file:
            json.dump({"names": self.state.names, "answers": self.state.answers}, file, indent=1)
        Path(partial).replace(self.path)


def load(where: Path, case: str, cell: str, option: str, names: tuple[str, ...], *, restart: bool = False) -> SavedBisection:
    """The saved bisection of this case, cell, option and list of builds. ``restart`` discards earlier answers.

    Raises UsageError if the file is damaged.
    """
    where.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\0".join((case, cell, option, *names)).encode()).hexdigest()[:12]
    path = where / f"bisect-{key}.json"
    if restart:
        path.unlink(missing_ok=True)
    try:
        data = json.loads(path.read_text())
        answers = tuple((int(which), str(outcome)) for which, outcome in data["answers"])
        if any(not 0 <= which < len(names) for which, _ in answers):
            raise ValueError("it has an answer for an unknown build")
    except FileNotFoundError:
        return SavedBisection(path, State(names))
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: {exc}", hint="discard it with --restart") from exc
    return SavedBisection(path, State(names, answers))
