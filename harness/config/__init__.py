# SPDX-License-Identifier: BSD-2-Clause
"""Configuration: ``fxh.toml`` in layers, loaded once, with the source of every value kept."""

from harness.config.load import Loaded, load
from harness.config.schema import Config, HostConfig, MailConfig, NightlyConfig, ReleaseConfig, RunConfig

__all__ = ["Config", "HostConfig", "Loaded", "MailConfig", "NightlyConfig", "ReleaseConfig", "RunConfig", "load"]
