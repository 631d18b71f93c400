# SPDX-License-Identifier: BSD-2-Clause
"""Programs that run in dom0. They need Python 3.7 or later and its standard library.

:mod:`harness.xen.dom0_program` starts them. A program may import other modules of this package as ``from harness.dom0.X import Y``.
"""
