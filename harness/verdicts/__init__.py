# SPDX-License-Identifier: BSD-2-Clause
"""What a result means beside those before it: pure functions from observations to verdicts, each with its reason in words."""
