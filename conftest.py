# SPDX-License-Identifier: BSD-2-Clause
"""Empty: the pytest plugin harness.plugin, an entry point, supplies all hooks and fixtures."""
