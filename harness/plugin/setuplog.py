# SPDX-License-Identifier: BSD-2-Clause
"""Record the setup of a run (builds, downloads, waits; see harness.preparing) in ``setup.jsonl``, apart from the cases' times."""

from __future__ import annotations

from pathlib import Path

from harness.preparing import Step
from harness.results import model
from harness.results.model import SetupStep


class SetupLog:
    """The setup steps of one process of a run. It is the callback of :func:`harness.preparing.listen`.

    Each step is written when it ends, so that a killed run keeps its steps. Steps before the run directory exists (a disk unpacked
    while the options are read) are written when it does.
    """

    def __init__(self) -> None:
        self.case = ""
        """The node id of the running case, or ""."""
        self.run: Path | None = None
        """The run directory, once it exists."""
        self._early: list[SetupStep] = []
        self._untaken: list[Step] = []

    def __call__(self, step: Step) -> None:
        recorded = SetupStep(step.what, round(step.seconds, 3), step.started, self.case)
        self._untaken.append(step)
        if self.run is None:
            self._early.append(recorded)
        else:
            model.add_setup(self.run, recorded)

    def write_to(self, run: Path) -> None:
        """Write the steps so far, and all later ones, into the run directory, which exists now.

        With several workers the controller has steps, too, such as a disk that it unpacked while it read the options.
        """
        self.run = run
        model.add_setup(run, *self._early)
        self._early.clear()

    def take(self) -> tuple[float, str]:
        """The seconds and the names of the steps since the last call."""
        steps, self._untaken = self._untaken, []
        return sum(step.seconds for step in steps), ", ".join(dict.fromkeys(step.what for step in steps))
