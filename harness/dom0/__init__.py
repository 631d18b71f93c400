# SPDX-License-Identifier: BSD-2-Clause
"""Programs that run in dom0, under its Python (3.7 or later) and with nothing but its standard library."""
