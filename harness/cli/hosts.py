# SPDX-License-Identifier: BSD-2-Clause
"""fxh hosts, fxh doctor and fxh clean: show, check and clean up the Xen hosts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import ExitCode, HarnessError, UsageError

if TYPE_CHECKING:
    from harness.config import HostConfig
    from harness.hosts.doctor import Check

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# Seconds for which a command waits for a host that another process brings back or prepares.
_LOCK = 10.0
# Number of hosts that are queried in parallel.
_PARALLEL = 16


def register(app: typer.Typer) -> None:
    app.command()(hosts)
    app.command()(doctor)
    app.command()(clean)


def _selected(words: str) -> tuple[HostConfig, ...]:
    """The hosts ``words``, or all of fxh.toml. Raises UsageError for an unknown host, a lab, and if there is no host."""
    from harness.config import load
    from harness.hosts import pool

    known = load().config.hosts
    found = pool.select_hosts(words, known) if words else tuple(known.values())
    if any(host.address == pool.LAB for host in found):
        raise UsageError("a lab has no leases, because each worker has its own", hint="`fxh lab list` shows the labs")
    if not found:
        raise UsageError("no hosts are configured", hint="name a host, or add [hosts.NAME] to fxh.toml (see docs/hosts.md)")
    return found


def _survey(config: HostConfig, clean: bool = False) -> dict[str, Any]:
    """The survey of one host (see harness.hosts.lease.survey), or its ``error`` and ``hint``."""
    from harness.hosts import connect, lease, places

    try:
        with places.taken(config) as config:
            transport = connect.transport(config)
            try:
                return lease.survey(transport, clean=clean, memory_limit=config.memory, vcpus_limit=config.vcpus)
            finally:
                transport.close()
    except HarnessError as exc:
        return {"error": exc.message, "hint": exc.hint}


def _describe(config: HostConfig) -> dict[str, Any]:
    """The survey of one host. Of a labgrid only the ``places`` and their users: nothing is acquired."""
    from harness.hosts import places
    from harness.labgrid import tags

    if not tags.is_labgrid(config.address):
        return _survey(config)
    try:
        return {"places": dict(places.survey(config).places)}
    except HarnessError as exc:
        return {"error": exc.message, "hint": exc.hint}


def _query(configs: tuple[HostConfig, ...], ask: Callable[[HostConfig], Any]) -> list[tuple[HostConfig, Any]]:
    with ThreadPoolExecutor(_PARALLEL) as executor:
        return list(zip(configs, executor.map(ask, configs), strict=True))


def hosts(
    names: Annotated[
        str, typer.Argument(help="Hosts (comma-separated): names, tag:TAG, addresses (default: all of fxh.toml).")
    ] = "",
    as_json: Json = False,
    again: Annotated[bool, typer.Option("--return", help="Use these hosts again if they are set aside.")] = False,
) -> None:
    """Show the capacity, leases and waiting runs of each host. Exit code 4 if a host does not answer."""
    if again:
        _return(names)
    found = _query(_selected(names), _describe)
    if as_json:
        print(json.dumps({config.label: answer for config, answer in found}, indent=1))
    else:
        for config, answer in found:
            for line in _lines(config, answer):
                print(line)
    if any("error" in answer for _, answer in found):
        raise typer.Exit(ExitCode.INFRASTRUCTURE)


def _return(names: str) -> None:
    """Use hosts again that are set aside."""
    from harness.hosts.record import HostRecord

    if not names:
        raise UsageError("--return without a host", hint="name the hosts that are repaired")
    for record in (HostRecord(config.name) for config in _selected(names) if config.name):
        with record.locked(seconds=_LOCK):
            done = record.use_again()
        print(f"{record.name}: {'is used again' if done else 'was not set aside'}", file=sys.stderr)


def _lines(config: HostConfig, answer: dict[str, Any]) -> list[str]:
    from harness.hosts.record import set_aside

    name = config.label
    aside = [f"  {refusal.message}" for refusal in [set_aside(config.name)] if refusal is not None]
    tags = f"  [{' '.join(config.tags)}]" if config.tags else ""
    if "error" in answer:
        return [f"{name:<16} no answer: {answer['error']}{tags}", *aside]
    if "places" in answer:
        return [
            f"{name:<16} {len(answer['places'])} places of a labgrid{tags}",
            *(f"  {place:<14} {f'acquired by {user}' if user else 'free'}" for place, user in answer["places"].items()),
            *aside,
        ]
    limit, held = answer["capacity"], [row for row in answer["leases"] if row.get("state") == "held"]
    used = {what: sum(row[what] for row in held) for what in ("memory", "vcpus", "disk")}
    lines = [
        f"{name:<16} {used['memory']}/{limit['memory']} MiB, {used['vcpus']}/{limit['vcpus']} vCPUs, "
        f"{used['disk']}/{limit['disk']} MiB of disk leased{tags}",
        *aside,
    ]
    for row in answer["leases"]:
        age = answer["now"] - row.get("since", answer["now"])
        place = f"slot {row['slot']}" if row.get("state") == "held" else "waits"
        lines.append(
            f"  {place:<8} {row.get('memory', '?'):>6} MiB {row.get('vcpus', '?'):>3} vCPUs  for {_age(age):>7}  {row.get('who', '?')}  "
            f"run {row['run']}  {row.get('what', '')}".rstrip()
        )
    for run, things in answer["orphans"].items():
        lines.append(f"  run {run} has no owner: {', '.join(things) or 'its lease'}; fxh clean {name}")
    return lines


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(max(0, seconds)), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{rest:02}s"


def doctor(
    host: Annotated[str, typer.Argument(help="Hosts (comma-separated), or lab (default: lab and all hosts of fxh.toml).")] = "",
    as_json: Json = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start a lab and check its dom0 too.")] = True,
) -> None:
    """Check that hosts and labs can run suites, with a hint for each problem. Exit code 4 for an error, 0 for warnings."""
    from harness.config import load

    known = load().config.hosts
    words = [word.strip() for word in (host or ",".join(["lab", *known])).split(",")]
    found: dict[str, list[Check]] = {}
    if "lab" in words:
        found["lab"] = _check_lab(start)
        words = [word for word in words if word != "lab"]
    if words:
        for config, checks in _query(_selected(",".join(words)), _examine):
            found[config.label] = list(checks)
    if as_json:
        print(json.dumps({name: [asdict(check) for check in checks] for name, checks in found.items()}, indent=1))
    else:
        for name, checks in found.items():
            _table(name, checks)
    if any(check.status == "fail" for checks in found.values() for check in checks):
        raise typer.Exit(ExitCode.INFRASTRUCTURE)


def _examine(config: HostConfig) -> tuple[Check, ...]:
    from harness.hosts import connect, equipment, places
    from harness.hosts import doctor as host_doctor

    try:
        with places.taken(config) as config:
            checks = host_doctor.examine(config, lambda: connect.transport(config))
            return (*checks, *equipment.examine(config))
    except HarnessError as exc:
        return (host_doctor.Check("labgrid", host_doctor.FAIL, exc.message, exc.hint),)


def _check_lab(start: bool) -> list[Check]:
    """Check this machine; if it is ready and ``start`` is set, start a lab and check its dom0 like any host."""
    from harness.config import HostConfig
    from harness.hosts import doctor as host_doctor
    from harness.hosts.doctor import FAIL, OK, Check
    from harness.lab import doctor as lab_doctor
    from harness.lab import factory

    spec = factory.LabSpec()
    checks = list(lab_doctor.examine(spec))
    ready = any(check.name == "checkpoint" and check.status == OK for check in checks)
    if not start or not ready or any(check.status == FAIL for check in checks):
        return checks
    from harness.lab.host import LabTransport

    begun = time.monotonic()
    try:
        with factory.make(spec) as lab:
            lab.up()
            checks.append(Check("lab start", OK, f"dom0 answered after {time.monotonic() - begun:.2f} s"))
            inside = host_doctor.examine(HostConfig("lab"), lambda: LabTransport(lab))
            # The clock still has the time of the checkpoint.
            return checks + [check for check in inside if check.name != "clock"]
    except HarnessError as exc:
        return [*checks, Check("lab start", FAIL, exc.message, exc.hint)]


def _table(name: str, checks: list[Check]) -> None:
    print(name)
    for check in checks:
        print(f"  {check.status:<5} {check.name:<16} {check.detail}")
        if check.hint and check.status != "ok":
            print(f"  {'':<5} {'':<16} -> {check.hint}")


def clean(
    host: Annotated[
        str, typer.Argument(help="Hosts, comma-separated (default: the labs of this machine and all hosts of fxh.toml).")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Remove the leftovers instead of listing them.")] = False,
) -> None:
    """List the domains, files, leases and labgrid places of killed runs; with --yes remove them."""
    from harness.config import load
    from harness.hosts import places
    from harness.lab import registry

    something = failed = False
    if not host:
        stale = [name for name in registry.names() if registry.state(name) == "stale"]
        for name in stale:
            print(f"this machine: lab {name} has no owner")
        something = bool(stale)
        if yes:
            registry.sweep()
        for place, coordinator in places.left_behind():
            print(f"this machine: labgrid place {place} at {coordinator} is still acquired by a run that ended")
            something = True
        if yes:
            failed = _release_places()
    if host or load().config.hosts:
        for config, answer in _query(_selected(host), lambda config: _survey(config, clean=yes)):
            name = config.label
            if "error" in answer:
                print(f"{name}: {answer['error']}", file=sys.stderr)
                failed = True
                continue
            for run, things in answer["orphans"].items():
                for thing in things or ["its lease"]:
                    print(f"{name}: run {run}: {thing}")
                    something = True
            for path in answer["files"]:
                print(f"{name}: unused file: {path}")
                something = True
            for run, things in answer.get("left", {}).items():
                print(f"{name}: run {run}: cannot be removed: {', '.join(things)}", file=sys.stderr)
                failed = True
    if not something:
        print("nothing was left behind")
    elif not yes:
        print("nothing was removed: add --yes")
    else:
        print("removed")
    if failed:
        raise typer.Exit(ExitCode.INFRASTRUCTURE)


def _release_places() -> bool:
    """Release the labgrid places of runs that ended. Returns whether a coordinator did not answer."""
    from harness.hosts import places

    failed = False
    for coordinator in sorted({coordinator for _, coordinator in places.left_behind()}):
        try:
            places.release_left_behind(coordinator)
        except HarnessError as exc:
            print(f"this machine: {exc}", file=sys.stderr)
            failed = True
    return failed
