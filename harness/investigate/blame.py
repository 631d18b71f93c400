# SPDX-License-Identifier: BSD-2-Clause
"""Attribution by substitution: what to run with one input swapped, and what the answers mean. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.results.model import FAILED, PASSED
from harness.results.where import Where

# Trials that are not swaps of one input.
AS_IT_FAILED, ALL_GOOD, CONTROL, OTHER_XEN = "as it failed", "all as it passed", "control guest", "another Xen"
HARNESS = "harness"
_WORDS = {"disk": "disk (the world)", "control": "control guest that was given"}


@dataclass(frozen=True)
class Trial:
    """One way to run the case again. ``options`` are those of ``fxh run``; ``cell`` the cell it then runs in.

    ``harness`` is the commit of the harness to run it with, or "" for this one.
    """

    name: str
    options: Mapping[str, str]
    cell: str
    harness: str = ""


@dataclass(frozen=True)
class Plan:
    """``unswappable``: what differs, too, but cannot be swapped, with the reason."""

    trials: tuple[Trial, ...]
    unswappable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Finding:
    """``follows`` are the inputs with which the failure goes; ``sentence`` says it, ``sure`` whether every answer agrees."""

    follows: tuple[str, ...]
    sentence: str
    sure: bool = True


@dataclass(frozen=True)
class Side:
    """A run of the case: how it was called, and with which harness (a commit, or "" when there is none to go back to)."""

    options: Mapping[str, str]
    where: Where
    harness: str = ""
    gone: Mapping[str, str] = field(default_factory=dict)
    """Options whose file is no longer what it was then, with the reason."""


def plan(bad: Side, good: Side | None, *, other_xens: Sequence[str] = ()) -> Plan:
    """What to run. ``good`` is the last run in which it passed, if there was one."""
    trials = [Trial(AS_IT_FAILED, bad.options, str(bad.where))]
    unswappable = []
    if good is not None:
        differ = sorted(
            name for name in bad.options.keys() | good.options.keys() if bad.options.get(name) != good.options.get(name)
        )
        # The same path with another content: what was there is lost.
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
    if bad.where.guest == "freebsd":
        options = {
            name: value
            for name, value in bad.options.items()
            if name not in ("kernel", "disk", "image", "bootloader", "root", "guest", "firmware")
        }
        guest_type = options.get("type", "pvh") if options.get("type") != "hvm" else "pvh"
        control = replace(bad.where, guest="control", type="pvh" if bad.where.type == "hvm" else bad.where.type, firmware="")
        trials.append(Trial(CONTROL, options | {"guest": "control", "type": guest_type}, str(control)))
    return Plan(tuple(trials), tuple(unswappable))


def conclude(
    trials: Sequence[Trial], outcomes: Mapping[str, Sequence[str]], unswappable: Sequence[tuple[str, str]] = ()
) -> Finding:
    """What the answers say. ``outcomes``: the outcomes of each trial, by its name; one that is missing was not run."""
    decided = {name: _decided(answers) for name, answers in outcomes.items()}
    again = decided.get(AS_IT_FAILED, "")
    if again == PASSED:
        return Finding((), "The failure did not come again with the same inputs: it is sporadic.")
    if again == "mixed":
        answers = outcomes[AS_IT_FAILED]
        words = f"it failed {sum(a == FAILED for a in answers)} of {len(answers)} times with the same inputs"
        return Finding((), f"The failure is flaky: {words}, so that no single answer says whose it is.", sure=False)
    if again != FAILED:
        return Finding((), "Nothing was learned: the case could not be run again (infrastructure).", sure=False)
    swaps = [
        trial.name
        for trial in trials
        if trial.name not in (AS_IT_FAILED, ALL_GOOD, CONTROL) and not trial.name.startswith(OTHER_XEN)
    ]
    cured = tuple(name for name in swaps if decided.get(name) == PASSED)
    unsure = [name for name in swaps if decided.get(name) not in (PASSED, FAILED)]
    notes = _notes(trials, decided, unswappable)
    if len(cured) == 1:
        sentence = f"The failure follows the {_WORDS.get(cured[0], cured[0])}: with the one that it passed with, and all else as it failed, it passes."
        return Finding(cured, sentence + notes, sure=not unsure)
    if cured:
        return Finding(
            cured, f"Swapping any of {', '.join(cured)} cures it: the failure needs all of them together.{notes}", not unsure
        )
    if decided.get(ALL_GOOD) == PASSED:
        names = ", ".join(swaps) or "nothing that was swapped alone"
        return Finding(
            tuple(swaps), f"It passes with all inputs as they were, but no single one of {names} cures it.{notes}", False
        )
    if decided.get(ALL_GOOD) == FAILED:
        text = "It fails even with every recorded input as it was when it passed: what changed is not recorded (the machine, the host)."
        return Finding((), text + notes, sure=not unsure)
    return Finding((), f"There is nothing that it passed with to swap in.{notes}", sure=False)


def _notes(trials: Sequence[Trial], decided: Mapping[str, str], unswappable: Sequence[tuple[str, str]]) -> str:
    notes = ""
    for trial in trials:
        answer = decided.get(trial.name, "")
        if trial.name == CONTROL and answer == PASSED:
            notes += " The control guest passes, so Xen, dom0 and the harness do their part."
        elif trial.name == CONTROL and answer == FAILED:
            notes += " The control guest fails, too: look at Xen, dom0 or the case before the guest."
        elif trial.name.startswith(OTHER_XEN) and answer in (PASSED, FAILED):
            notes += f" On {trial.name.removeprefix('another ')} it {answer}."
    for name, why in unswappable:
        notes += f" Not swapped: {name} ({why})."
    return notes


def _decided(answers: Sequence[str]) -> str:
    """passed, failed, mixed, or "" when nothing was learned."""
    judged = {answer for answer in answers if answer in (PASSED, FAILED)}
    if len(judged) == 2:
        return "mixed"
    return judged.pop() if judged else ""


def _with(options: Mapping[str, str], name: str, value: str | None) -> dict[str, str]:
    changed = dict(options)
    changed.pop(name, None)
    if value is not None:
        changed[name] = value
    return changed


def _other_xen(bad: Side, xen: str) -> tuple[dict[str, str], str]:
    options = {name: value for name, value in bad.options.items() if name not in ("hypervisor", "dom0-kernel")}
    return options | {"xen": xen}, str(replace(bad.where, host=f"xen-{xen}", xen=xen))
