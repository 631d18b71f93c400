# SPDX-License-Identifier: BSD-2-Clause
"""Investigate a failure by running its case again: attribute it to an input, bisect builds, export and reproduce it elsewhere."""
