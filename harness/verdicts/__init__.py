# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts: pure functions that judge a result by earlier ones, and give the reason as text."""
