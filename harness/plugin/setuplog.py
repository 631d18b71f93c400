# SPDX-License-Identifier: BSD-2-Clause
"""The setup of a run: what the harness builds, downloads and waits for goes into a list of its own, and out of the cases' times."""

from __future__ import annotations

from pathlib import Path

from harness.preparing import Step
from harness.results import model
from harness.results.model import SetupStep


class SetupLog:
    """Belongs to one process of a run; it is what :func:`harness.preparing.listen` tells of each step.

    Steps are written into the run's directory as they end, so that a run that is killed keeps them. Those from before there is a
    directory (a disk that is unpacked while the options are read) follow as soon as it is there.
    """

    def __init__(self) -> None:
        self.case = ""
        """The node id of the case at work, or ""."""
        self._run: Path | None = None
        self._early: list[SetupStep] = []
        self._untaken: list[Step] = []

    def __call__(self, step: Step) -> None:
        made = SetupStep(step.what, round(step.seconds, 3), step.started, self.case)
        self._untaken.append(step)
        if self._run is None:
            self._early.append(made)
        else:
            model.add_setup(self._run, made)

    def opened(self, run: Path) -> None:
        """The run's directory is there."""
        self._run = run
        model.add_setup(run, *self._early)
        self._early.clear()

    def take(self) -> tuple[float, str]:
        """The steps since this was called last: their seconds, and what they were, in words."""
        steps, self._untaken = self._untaken, []
        return sum(step.seconds for step in steps), ", ".join(dict.fromkeys(step.what for step in steps))
