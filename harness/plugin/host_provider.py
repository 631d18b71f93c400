# SPDX-License-Identifier: BSD-2-Clause
"""From where a worker has its real hosts: the pool that ``--xen-host`` names, a share of a host at a time."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable
from functools import cached_property

from harness.config import HostConfig, load
from harness.deadline import Deadline
from harness.guests.source import GuestSource
from harness.hosts import connect
from harness.hosts.host import DirectHost
from harness.hosts.lease import LeaseRequest
from harness.hosts.pool import LAB, HostPool, select_hosts
from harness.plugin.options import Options

log = logging.getLogger("fxh.rig")


class HostProvider:
    """``lab`` makes a lab, for a pool that has labs among its hosts."""

    def __init__(self, options: Options, lab: Callable[[], DirectHost]) -> None:
        self._options, self._lab = options, lab

    @cached_property
    def _pool(self) -> HostPool:
        def connected(config: HostConfig, what: str) -> DirectHost:
            if config.address == LAB:
                return self._lab()
            return DirectHost(connect.transport(config), config=config, what=what)

        hosts = select_hosts(self._options.host, load().config.hosts)
        return HostPool(hosts, self._options.worker, shlex.join(sys.argv[1:])[:80], connected)

    def acquire(self, source: GuestSource) -> DirectHost:
        """A share of a host: enough for two guests of ``source``, with what Xen takes beside their memory."""
        disk = 64 + sum(image.path.stat().st_size * 3 for image in source.disks) // (1 << 20)
        wish = LeaseRequest("", self._options.lease_memory or 2 * (source.memory + 32), 2, disk)
        return self._pool.acquire(wish, Deadline(self._options.lease_wait))

    @staticmethod
    def wanted(host: DirectHost | None) -> bool:
        """Whether somebody else waits for it: then it is his turn after the case that is at work."""
        if host is None or host.lease is None or not host.lease.contended:
            return False
        log.info("%s is wanted by somebody else: giving our share back", host.facts.name)
        return True

    def lost(self, host: DirectHost, why: str) -> None:
        """Leave it alone for a while."""
        if self._options.host:
            self._pool.mark_lost(host.config.name or host.config.address, why, host.run_id)
        if host.lease is not None:  # nobody there to say goodbye to, or not in time
            host.lease.lost = host.lease.lost or why
