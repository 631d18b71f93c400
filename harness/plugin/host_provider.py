# SPDX-License-Identifier: BSD-2-Clause
"""Gives a worker its hosts from the pool that ``--xen-host`` names, one share of a host at a time."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable
from functools import cached_property

from harness.config import HostConfig, load
from harness.deadline import Deadline
from harness.errors import HarnessError, TransportError
from harness.guests.source import GuestSource
from harness.hosts import connect
from harness.hosts.direct import DirectHost
from harness.hosts.lease import LeaseRequest
from harness.hosts.pool import LAB, HostPool, is_one, select_hosts
from harness.plugin.options import Options

log = logging.getLogger("fxh.worker")


class HostProvider:
    """The pool of one run. ``start_lab`` starts a lab, for a pool that contains labs."""

    def __init__(self, options: Options, start_lab: Callable[[], DirectHost]) -> None:
        self._options, self._start_lab = options, start_lab

    @cached_property
    def _pool(self) -> HostPool:
        def connected(config: HostConfig, what: str) -> DirectHost:
            if config.address == LAB:
                return self._start_lab()
            return connect.host(config, what)

        hosts = select_hosts(self._options.host, load().config.hosts)
        return HostPool(hosts, self._options.worker, shlex.join(sys.argv[1:])[:80], connected)

    @property
    def is_one_host(self) -> bool:
        """Whether all cases run on the same machine."""
        return is_one(self._pool.hosts)

    def acquire(self, source: GuestSource) -> DirectHost:
        """A share of a host, large enough for two guests of ``source`` and Xen's overhead (32 MiB each)."""
        disk = 64 + sum(image.path.stat().st_size * 3 for image in source.disks) // (1 << 20)
        request = LeaseRequest("", self._options.lease_memory or 2 * (source.memory + 32), 2, disk)
        return self._pool.acquire(request, Deadline(self._options.lease_wait))

    def should_give_back(self, host: DirectHost) -> bool:
        """Whether to give the share back after the case: another process waits for the host, or a better host is back."""
        if host.lease is None:
            return False
        if host.lease.contended:
            log.info("%s is wanted by another process: giving our share back", host.facts.name)
            return True
        return self._pool.own_place_is_back(host.config)

    def mark_lost(self, host: DirectHost, error: HarnessError) -> None:
        """Tell the pool that the host is lost, so that it is not used for a while, or brought back."""
        why = error.message
        if self._options.host:
            # A host that answers heartbeats is loaded if a check takes too long (DeadlineExpired).
            hangs = isinstance(error, TransportError)
            self._pool.mark_lost(host.config.label, why, host.run_id, hangs=hangs)
        if host.lease is not None:  # do not wait for the host when the lease ends
            host.lease.lost = host.lease.lost or why

    def close(self) -> None:
        """See :meth:`HostPool.close`."""
        if "_pool" in self.__dict__:
            self._pool.close()
