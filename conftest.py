# SPDX-License-Identifier: BSD-2-Clause
"""Nothing here: the plugin (harness.plugin, by entry point) has all hooks and fixtures."""
