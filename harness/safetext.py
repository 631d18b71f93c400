# SPDX-License-Identifier: BSD-2-Clause
"""Text that is safe to show and to pass on: without control sequences, and without secrets."""

from __future__ import annotations

import functools
import re

REMOVED = "***"
"""Replaces a secret."""

# ESC [ 9 9 9 ; 9 9 9 H   ESC ] P 0 0 0 0 0 0 0 (Linux)
# ESC ] 0 ; title BEL   ESC 7   ESC ( B
# A control string without its end is not removed: the rest of its line is text.
ESCAPE = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\]P[0-9A-Fa-f]{7}|\]R|[\]P^_X][^\x07\x1b\r\n]{0,256}(?:\x07|\x1b\\)|[ -/]*[0-~])"
_ESCAPE = re.compile(ESCAPE)
# Unprintable characters except line ends and tabs; line ends of str.splitlines(); invisible characters, and marks that reorder
# text. They are Unicode's categories Cc, Cf, Zl and Zp. Also halves of characters (Cs), which no file can have.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f]+"
)

SECRET_NAME = r"[\w-]{0,40}(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|credential)[\w-]{0,40}"
"""Pattern for the name of a variable or an option that holds a secret."""
_VALUE = r"(?:\"[^\"\n]*\"?|'[^'\n]*'?|[^\s\"',;}]+)"
# Each pattern keeps its first group. Repetitions before a secret are bounded: a guest's console may have millions of characters that
# almost match.
_SECRETS = (
    # -----BEGIN OPENSSH PRIVATE KEY----- ... -----END OPENSSH PRIVATE KEY-----
    re.compile(r"()-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL),
    # Authorization: Bearer x
    re.compile(r"(?i)(\b(?:proxy-)?authorization[\"']?\s?[:=])[^\r\n]+"),
    # password=x   "api_key": "x"   AUTH_TOKEN: x   PGPASSWORD='my secret'
    re.compile(rf"(?i)((?<![\w-]){SECRET_NAME}[\"']?[ \t]{{0,8}}[:=][ \t]{{0,8}}){_VALUE}"),
    # --token x   --smtp-password 'my secret'
    re.compile(rf"(?i)((?<![\w-])-{SECRET_NAME}[ \t]{{1,8}}){_VALUE}"),
    # https://user:password@host/   https://token@host/
    re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^/\s@]{1,200}(?=@)"),
    # AKIA0123456789ABCDEF   ghp_...   xoxb-...
    re.compile(r"()\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abprs]-[A-Za-z0-9-]{10,})\b"),
)


def plain(text: str) -> str:
    """``text`` without escape sequences, and with other control characters as ``<0x07>``: safe for terminals and HTML."""
    text = _ESCAPE.sub("", text.replace("\r", "\n") if "\n" not in text else text.replace("\r", ""))
    return _CONTROL.sub(lambda match: "".join(map(_escaped, match[0])), text)


# A cache, because a log may have millions of NULs: each is the same string then.
@functools.cache
def _escaped(character: str) -> str:
    return f"<0x{ord(character):02x}>"


def redact(text: str) -> str:
    """``text`` with passwords, tokens and keys replaced by :data:`REMOVED`. The time is linear in the length of ``text``."""
    for pattern in _SECRETS:
        text = pattern.sub(rf"\1{REMOVED}", text)
    return text
