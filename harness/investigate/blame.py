# SPDX-License-Identifier: BSD-2-Clause
"""Attribute a failure to an input: plan runs with one input swapped at a time, and draw a conclusion from their outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.results.model import FAILED, PASSED
from harness.results.where import CONTROL_GUEST, Where

# Names of the trials that do not swap a single input.
AS_IT_FAILED, ALL_GOOD, CONTROL, OTHER_XEN = "as it failed", "all inputs of the passing run", "control guest", "another Xen"
HARNESS = "harness"
_WORDS = {"disk": "disk (the world)", "control": "given control guest"}


@dataclass(frozen=True)
class Trial:
    """One way to run the case again, in ``cell`` and with ``options`` of ``fxh run``.

    ``harness`` is the commit of the harness to use, or "" for the current one.
    """

    name: str
    options: Mapping[str, str]
    cell: str
    harness: str = ""


@dataclass(frozen=True)
class Plan:
    """``unswappable`` are inputs that differ but cannot be swapped, with the reason."""

    trials: tuple[Trial, ...]
    unswappable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Attribution:
    """``follows`` are the inputs that the failure depends on, and ``sentence`` says so. ``sure``: no outcome contradicts it."""

    follows: tuple[str, ...]
    sentence: str
    sure: bool = True


@dataclass(frozen=True)
class Side:
    """A run of the case. ``harness`` is the commit of its harness, or "" if that is unknown."""

    options: Mapping[str, str]
    where: Where
    harness: str = ""
    gone: Mapping[str, str] = field(default_factory=dict)
    """Options whose file has changed since that run, with the reason."""


def plan(bad: Side, good: Side | None, *, other_xens: Sequence[str] = ()) -> Plan:
    """The trials to run. ``good`` is the last run in which the case passed, or None."""
    trials = [Trial(AS_IT_FAILED, bad.options, str(bad.where))]
    unswappable = []
    if good is not None:
        differ = sorted(
            name for name in bad.options.keys() | good.options.keys() if bad.options.get(name) != good.options.get(name)
        )
        # The path is the same, but the file has another content: the old file is lost.
        differ += sorted(name for name in good.gone if name not in differ)
        swappable = [name for name in differ if name not in good.gone]
        unswappable = [(name, good.gone[name]) for name in differ if name in good.gone]
        all_good = dict(bad.options)
        for name in swappable:
            all_good = _with(all_good, name, good.options.get(name))
        old = good.harness if good.harness != bad.harness else ""
        if swappable or old:
            trials.append(Trial(ALL_GOOD, all_good, str(bad.where), old))
        trials += [Trial(name, _with(bad.options, name, good.options.get(name)), str(bad.where)) for name in swappable]
        if old:
            trials.append(Trial(HARNESS, bad.options, str(bad.where), old))
    trials += [Trial(f"{OTHER_XEN} ({xen})", *_other_xen(bad, xen)) for xen in other_xens]
    if bad.where.guest != CONTROL_GUEST:
        options = {
            name: value
            for name, value in bad.options.items()
            if name not in ("kernel", "disk", "image", "bootloader", "root", "guest", "firmware")
        }
        guest_type = options.get("type", "pvh") if options.get("type") != "hvm" else "pvh"
        control = replace(bad.where, guest=CONTROL_GUEST, type="pvh" if bad.where.type == "hvm" else bad.where.type, firmware="")
        trials.append(Trial(CONTROL, options | {"guest": CONTROL_GUEST, "type": guest_type}, str(control)))
    return Plan(tuple(trials), tuple(unswappable))


def conclude(
    trials: Sequence[Trial], outcomes: Mapping[str, Sequence[str]], unswappable: Sequence[tuple[str, str]] = ()
) -> Attribution:
    """Draw the conclusion. ``outcomes`` has the outcomes of each trial by its name; a missing trial was not run."""
    decided = {name: _decided(answers) for name, answers in outcomes.items()}
    repeated = decided.get(AS_IT_FAILED, "")
    if repeated == PASSED:
        return Attribution((), "The failure did not recur with the same inputs: it is sporadic.")
    if repeated == "mixed":
        answers = outcomes[AS_IT_FAILED]
        count = f"the case failed {sum(a == FAILED for a in answers)} of {len(answers)} times with the same inputs"
        return Attribution((), f"The failure is flaky: {count}, so single runs cannot attribute it.", sure=False)
    if repeated != FAILED:
        return Attribution((), "No result: the case could not be run again (infrastructure).", sure=False)
    swaps = [
        trial.name
        for trial in trials
        if trial.name not in (AS_IT_FAILED, ALL_GOOD, CONTROL) and not trial.name.startswith(OTHER_XEN)
    ]
    sufficient = tuple(name for name in swaps if decided.get(name) == PASSED)
    undecided = [name for name in swaps if decided.get(name) not in (PASSED, FAILED)]
    notes = _notes(trials, decided, unswappable)
    if len(sufficient) == 1:
        sentence = f"The failure follows the {_WORDS.get(sufficient[0], sufficient[0])}: with only that input taken from the passing run, the case passes."
        return Attribution(sufficient, sentence + notes, sure=not undecided)
    if sufficient:
        return Attribution(
            sufficient,
            f"Swapping any of {', '.join(sufficient)} makes the case pass: the failure needs all of them together.{notes}",
            not undecided,
        )
    if decided.get(ALL_GOOD) == PASSED:
        names = ", ".join(swaps) or "the swapped inputs"
        return Attribution(
            tuple(swaps),
            f"The case passes with all inputs of the passing run, but swapping any single one of {names} is not enough.{notes}",
            False,
        )
    if decided.get(ALL_GOOD) == FAILED:
        text = "The case fails even with all recorded inputs of the passing run: the cause is not recorded (machine or host)."
        return Attribution((), text + notes, sure=not undecided)
    return Attribution((), f"No input of a passing run is available to swap in.{notes}", sure=False)


def _notes(trials: Sequence[Trial], decided: Mapping[str, str], unswappable: Sequence[tuple[str, str]]) -> str:
    notes = ""
    for trial in trials:
        answer = decided.get(trial.name, "")
        if trial.name == CONTROL and answer == PASSED:
            notes += " The control guest passes, so Xen, dom0 and the harness work."
        elif trial.name == CONTROL and answer == FAILED:
            notes += " The control guest also fails: suspect Xen, dom0 or the case before the guest."
        elif trial.name.startswith(OTHER_XEN) and answer in (PASSED, FAILED):
            notes += f" On {trial.name.removeprefix('another ')} the case {answer}."
    for name, why in unswappable:
        notes += f" Not swapped: {name} ({why})."
    return notes


def _decided(answers: Sequence[str]) -> str:
    """``passed``, ``failed``, ``mixed``, or "" without a result."""
    results = {answer for answer in answers if answer in (PASSED, FAILED)}
    if len(results) == 2:
        return "mixed"
    return results.pop() if results else ""


def _with(options: Mapping[str, str], name: str, value: str | None) -> dict[str, str]:
    changed = dict(options)
    changed.pop(name, None)
    if value is not None:
        changed[name] = value
    return changed


def _other_xen(bad: Side, xen: str) -> tuple[dict[str, str], str]:
    options = {name: value for name, value in bad.options.items() if name not in ("hypervisor", "dom0-kernel")}
    return options | {"xen": xen}, str(replace(bad.where, host=f"xen-{xen}", xen=xen))
