# SPDX-License-Identifier: BSD-2-Clause
"""``python -m harness.cli`` is ``fxh``."""

from harness.cli.main import main

main()
