# SPDX-License-Identifier: BSD-2-Clause
"""freebsd-xen-harness: boot FreeBSD under Xen, read the console, say what regressed."""

__version__ = "0.2.0"
