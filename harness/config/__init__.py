# SPDX-License-Identifier: BSD-2-Clause
"""Configuration: ``fxh.toml`` in layers, with the source of each value."""

from harness.config.load import Loaded, load
from harness.config.runoptions import RunOptions
from harness.config.schema import Config, HostConfig, MailConfig, NightlyConfig

__all__ = ["Config", "HostConfig", "Loaded", "MailConfig", "NightlyConfig", "RunOptions", "load"]
