# SPDX-License-Identifier: BSD-2-Clause
"""Check the equipment of a host on this machine: its power commands and its serial console."""

from __future__ import annotations

from collections.abc import Iterator

from harness.config.schema import HostConfig
from harness.errors import InfrastructureError
from harness.hosts import places, power, serial
from harness.hosts.doctor import FAIL, OK, WARN, Check
from harness.hosts.record import set_aside


def examine(config: HostConfig) -> Iterator[Check]:
    """The checks of the configured equipment. Switches nothing."""
    if aside := set_aside(config.name):
        yield Check("set aside", FAIL, aside.message, aside.hint)
    try:
        if (found := places.power_of(config)) is not None:
            if off := power.interrupted(config.name):
                yield Check("power cycle", FAIL, off, f"run: fxh power on {config.name}")
            on = found.status()
            yield Check("power", WARN if on is None else OK, power.word(on, "no power.status"), "set power.status")
    except InfrastructureError as exc:
        yield Check("power", FAIL, exc.message, exc.hint)
    if (console := serial.of(config)) is not None:
        try:
            with places.blamed(config):
                console.start()
            console.stop()
            yield Check("serial", OK, str(console.path))
        except InfrastructureError as exc:
            yield Check("serial", FAIL, exc.message, exc.hint)
