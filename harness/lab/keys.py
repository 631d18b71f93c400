# SPDX-License-Identifier: BSD-2-Clause
"""The ssh keys of a lab. They are made with its ready checkpoint and are never part of a build or an export."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.lab import cpio

_KIND = b"ssh-ed25519"


@dataclass(frozen=True)
class Keys:
    """``client`` is an OpenSSH private key (PEM text), ``host`` the line ``ssh-ed25519 AAAA...`` of dom0's public key."""

    client: str
    host: str


def make() -> tuple[Keys, bytes]:
    """New keys, and an initramfs archive with dom0's files of them below ``/keys``."""
    client, host = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    private = client.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    files = {
        "keys/root/.ssh/authorized_keys": (0o600, _public_line(client).encode() + b"\n"),
        "keys/etc/dropbear/dropbear_ed25519_host_key": (0o600, _dropbear(host)),
    }
    return Keys(private, _public_line(host)), cpio.archive(files)


def _raw_public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _public_line(key: Ed25519PrivateKey) -> str:
    blob = _string(_KIND) + _string(_raw_public(key))
    return f"{_KIND.decode()} {base64.b64encode(blob).decode()}"


def _dropbear(key: Ed25519PrivateKey) -> bytes:
    """Dropbear's key file: the key's kind, then seed and public key as one string (dropbear's ed25519.c)."""
    seed = key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    return _string(_KIND) + _string(seed + _raw_public(key))
