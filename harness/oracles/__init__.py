# SPDX-License-Identifier: BSD-2-Clause
"""Judges: values in, complaints out. No judge talks to a host or a guest; each has unit tests of its own."""
