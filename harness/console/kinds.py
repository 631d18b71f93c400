# SPDX-License-Identifier: BSD-2-Clause
"""The kinds of death. Results and identities contain these names, so they must not change."""

from __future__ import annotations

from typing import Final, Literal

DeathKind = Literal[
    # FreeBSD's kernel reports: a panic, a second panic during the first, a fatal trap.
    "panic",
    "double-panic",
    "trap",
    # Linux reports: a panic, or an oops, BUG, stall or lockup.
    "linux-panic",
    "linux-oops",
    # Xen crashes the domain, or the Xen of the PV shim panics.
    "crash",
    # The boot stops at a prompt or menu.
    "ddb",
    "mountroot",
    "single-user",
    "firmware",
    "loader",
    "passphrase",
    "installer",
    "fsck",
    # A boot that no case requested.
    "second-boot",
    # No progress before a deadline; the domain is gone; Xen's tools refuse to start the guest.
    "hang",
    "eof",
    "refused",
]
SECOND_BOOT: Final = "second-boot"
