# SPDX-License-Identifier: BSD-2-Clause
"""fxh power and fxh prepare: the power switches of the Xen hosts, and the installation of the Xen under test."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import completion
from harness.errors import ExitCode, HarnessError, UsageError
from harness.safetext import plain

if TYPE_CHECKING:
    from harness.config import HostConfig

# Number of hosts that are prepared in parallel.
_PARALLEL = 16
# Seconds between two looks for a signal.
_LOOK = 0.5
_ACTIONS = ("status", "on", "off", "cycle")


def register(app: typer.Typer) -> None:
    app.command()(power)
    app.command()(prepare)


def power(
    action: Annotated[str, typer.Argument(help="One of status, on, off, cycle.", autocompletion=completion.one_of(*_ACTIONS))],
    host: Annotated[
        str, typer.Argument(help="The host, by its name in fxh.toml, or labgrid:name=PLACE.", autocompletion=completion.hosts)
    ],
) -> None:
    """Switch the power of a host, or print whether it is on. Switching ends all guests of the host at once."""
    from harness.hosts import connect, places
    from harness.hosts import power as powers

    if action not in _ACTIONS:
        raise UsageError(f"{action}: no such action", hint=f"use one of {', '.join(_ACTIONS)}")
    with places.taken(connect.named(host)) as config:
        found = places.power_of(config)
        if found is None:
            hint = f"set hosts.{host}.power in fxh.toml (docs/hosts.md), or add a power port to the labgrid place"
            raise UsageError(f"{host} has no power commands", hint=hint)
        if action != "status":
            getattr(found, action)()
        on = found.status()
    print(f"{host}: {powers.word(on, 'unknown: no power.status is set')}")


def prepare(
    names: Annotated[
        str,
        typer.Argument(
            help="Hosts (comma-separated): names or tag:TAG (default: all of fxh.toml).", autocompletion=completion.hosts
        ),
    ] = "",
) -> None:
    """Run the command `prepare` of each host that has one, and boot the host. Exit code 4 if a host fails; it is then set aside.

    Ctrl-C stops the commands with all their processes. These hosts are set aside until they are prepared again.
    """
    from harness.config import load
    from harness.hosts import pool

    known = load().config.hosts
    found = [host for host in (pool.select_hosts(names, known) if names else known.values()) if host.prepare]
    if not found:
        raise UsageError("no host has a command to prepare it", hint="set hosts.NAME.prepare in fxh.toml (docs/hosts.md)")
    stop = threading.Event()
    with ThreadPoolExecutor(_PARALLEL) as executor:
        jobs: list[Future[bool]] = []
        try:
            jobs += (executor.submit(_prepare, config, stop) for config in found)
            # Python acts on a signal that arrives just before a wait only after that wait, so none may be without a limit.
            while wait(jobs, _LOOK).not_done:
                pass
            good = [job.result() for job in jobs]
        except KeyboardInterrupt:
            stop.set()
            running = [config.name for config, job in zip(found, jobs, strict=False) if not job.done() and not job.cancel()]
            print(f"fxh: stopping the preparation of {', '.join(running)}", file=sys.stderr)
            wait(jobs)
            raise
    if not all(good):
        raise typer.Exit(ExitCode.INFRASTRUCTURE)


def _prepare(config: HostConfig, stop: threading.Event) -> bool:
    from harness.hosts import connect
    from harness.hosts import power as powers
    from harness.hosts import prepare as preparing

    try:
        facts = preparing.prepare(config, powers.of(config), lambda: connect.transport(config), stop)
    except HarnessError as exc:
        print(f"{config.name}: {exc}", file=sys.stderr)
        return False
    builds = "; ".join(f"{name} {value}" for name, value in facts.builds)
    print(plain(f"{config.name}: Xen {facts.xen}, {facts.dom0}{f' ({builds})' if builds else ''}"))
    return True
