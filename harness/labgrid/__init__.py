# SPDX-License-Identifier: BSD-2-Clause
"""Places of a labgrid coordinator as Xen hosts. Only separate processes import labgrid: the keeper and the serial reader."""
