# SPDX-License-Identifier: BSD-2-Clause
"""The private keys for a login by ssh: a given one, those of files, and those of the agent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

_DEFAULT = ("id_ed25519", "id_ecdsa", "id_rsa")
# What paramiko raises for a file that is not a private key, or that cannot be read.
_UNUSABLE = (ValueError, paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm)


@dataclass(frozen=True)
class Keys:
    """The keys to offer, in this order."""

    usable: tuple[paramiko.PKey, ...]
    unusable: tuple[str, ...] = ()
    """Why other keys are not offered."""

    @property
    def remark(self) -> str:
        """The unusable keys in parentheses, for an error; or ""."""
        return f" ({'; '.join(self.unusable)})" if self.unusable else ""


def load(private_key: str, paths: Sequence[Path]) -> Keys:
    """The ``private_key`` (the text of an ed25519 key) alone, or else the keys of ``paths`` (default: of ~/.ssh) and of the agent.

    A key that cannot be used is not an error, as for ssh(1): the host may accept another one.
    """
    if private_key:
        return Keys((paramiko.Ed25519Key.from_private_key(io.StringIO(private_key)),))
    usable: list[paramiko.PKey] = []
    unusable: list[str] = []
    for path in paths or [Path(f"~/.ssh/{name}").expanduser() for name in _DEFAULT]:
        try:
            if path.exists():
                usable.append(paramiko.PKey.from_path(path))
        except (paramiko.PasswordRequiredException, TypeError):  # cryptography raises TypeError without a password
            unusable.append(f"{path} has a passphrase: run ssh-add")
        except OSError as exc:
            unusable.append(f"{path}: {exc.strerror}")
        except _UNUSABLE:
            unusable.append(f"{path} is not a private key")
    try:
        usable += paramiko.Agent().get_keys()
    except (OSError, paramiko.SSHException) as exc:
        unusable.append(f"the agent of SSH_AUTH_SOCK failed: {exc}")
    return Keys(tuple(usable), tuple(unusable))
