# SPDX-License-Identifier: BSD-2-Clause
"""Guest operating systems: one module each, which :mod:`harness.guests.registry` knows by the names of its guests.

No other module compares the name of an OS. See :class:`harness.guests.os.base.GuestOS` for the members that a new OS must supply.
"""
