# SPDX-License-Identifier: BSD-2-Clause
"""Oracles: pure functions that judge values which a case observed. They do not talk to a host or a guest."""
