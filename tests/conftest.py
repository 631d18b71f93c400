"""Machines are noisy: no test of ours is timed, so Hypothesis shall not time its examples either."""

from hypothesis import settings

settings.register_profile("fxh", deadline=None)
settings.load_profile("fxh")
