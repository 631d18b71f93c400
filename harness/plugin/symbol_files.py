# SPDX-License-Identifier: BSD-2-Clause
"""Refuses the files of ``--symbols`` that belong to another build than the kernels of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UsageError
from harness.hosts.host import XenHost
from harness.images import debugfile
from harness.images.debugfile import XEN
from harness.lab import factory
from harness.plugin.guest_sources import GuestSources
from harness.plugin.options import Options
from harness.xen.elfnotes import build_id

log = logging.getLogger("fxh.symbols")

# Names of hosts of a pool.
_warned: set[str] = set()


def check(options: Options, sources: GuestSources) -> None:
    """Compare the build-ids with the kernels of the guests, and with the hypervisors of labs, before anything boots.

    Builds the lab if its hypervisor or its control guest is needed for this. Raises UsageError for another build, and for
    symbols of a kernel that the run does not use.
    """
    for path in options.symbols:
        file, kind = debugfile.chosen(path)
        if kind == XEN and options.host:  # it is known when the host is connected
            continue
        known = dict(_hypervisors(options) if kind == XEN else _kernels(options, sources, kind))
        if not known:
            raise UsageError(f"--symbols {file}: symbols of {kind}, which no guest of this run boots", hint="omit it")
        if build_id(file) not in known.values():
            raise _other_build(file, kind, known)


def check_host(options: Options, host: XenHost, *, only: bool) -> None:
    """Compare the symbols of a hypervisor with the one that ``host`` runs. Raises UsageError.

    The hosts of a pool may run different hypervisors. There, other symbols are only a warning: its traces get no lines.
    ``only``: it is the only host of the run.
    """
    facts = host.facts
    for path in options.symbols:
        file, kind = debugfile.chosen(path)
        if kind == XEN and options.host and build_id(file) != facts.build_id:
            error = _other_build(file, kind, {f"Xen {facts.xen} on {facts.name}": facts.build_id})
            if only:
                raise error
            if facts.name not in _warned:
                _warned.add(facts.name)
                log.warning("%s", error.message)


def _other_build(file: Path, kind: str, known: dict[str, str]) -> UsageError:
    others = ", ".join(f"{what} has {identity or 'none'}" for what, identity in known.items())
    return UsageError(
        f"--symbols {file}: symbols of another build of {kind}: build-id {build_id(file)}, but {others}",
        hint="give the file of the same build, or omit it",
    )


def _hypervisors(options: Options) -> Iterator[tuple[str, str]]:
    """Each hypervisor of the run's labs and its build-id."""
    for xen in options.xens:
        yield f"the lab's Xen {xen}", build_id(factory.image(options.lab_spec(xen)).directory / "xen")


def _kernels(options: Options, sources: GuestSources, kind: str) -> Iterator[tuple[str, str]]:
    """Each kernel file of this kind in the run, and its build-id."""
    for source in sources.of_system(kind):
        if (symbols := source.kernel_symbols) is not None:
            yield f"the kernel of {source.label}", symbols.identity
