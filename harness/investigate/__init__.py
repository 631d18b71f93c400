# SPDX-License-Identifier: BSD-2-Clause
"""After the verdict: whose fault is it, since which change, and can somebody else see it? Each by running the case again."""
