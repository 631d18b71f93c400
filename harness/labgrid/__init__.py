# SPDX-License-Identifier: BSD-2-Clause
"""Places of a labgrid coordinator as Xen hosts. Only :mod:`harness.labgrid.keeper`, a process of its own, imports labgrid."""
