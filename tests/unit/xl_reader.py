# SPDX-License-Identifier: BSD-2-Clause
"""Parses xl's syntax like xl. It follows Xen's lexers and shares no code with the renderer.

Sources: xen tools/libs/util/libxlu_cfg_l.l, libxlu_cfg_y.y, xlu__cfgl_dequote() in libxlu_cfg.c, libxlu_disk_l.l, and
libxl__device_disk_dev_number() in tools/libs/light/libxl_device.c.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    rb"""(?P<ident>[a-z][._0-9a-z]*)|(?P<number>[0-9][0-9a-fx]*)|(?P<blank>[ \t])|(?P<mark>[][,;=])|(?P<line>\n)"""
    rb"""|(?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""",
)
_ESCAPES = {b'"'[0]: b'"', b"'"[0]: b"'", b"\\"[0]: b"\\"} | dict(
    zip(b"abfnrtv", [b"\a", b"\b", b"\f", b"\n", b"\r", b"\t", b"\v"], strict=True)
)

Value = bytes | list[bytes]


def config(text: str) -> dict[str, Value]:
    """The settings of a configuration file; lists contain strings. Raises ValueError if xl reports an error."""
    tokens, at, data = [], 0, text.encode()
    while at < len(data):
        match = _TOKEN.match(data, at)
        if match is None:
            raise ValueError(f"lexical error at {data[at : at + 20]!r}")
        at = match.end()
        if match.lastgroup != "blank":
            tokens.append((match.lastgroup, _unquote(match[0]) if match.lastgroup == "string" else match[0]))
    found: dict[str, Value] = {}
    rest = iter(tokens)
    for kind, name in rest:
        if kind == "line":
            continue
        if kind != "ident" or next(rest) != ("mark", b"="):
            raise ValueError(f"no assignment at {name!r}")
        kind, value = next(rest)
        if (kind, value) == ("mark", b"["):
            items: list[bytes] = []
            for kind, value in rest:
                if (kind, value) == ("mark", b"]"):
                    break
                if kind in ("string", "number"):
                    items.append(value)
                elif (kind, value) != ("mark", b","):
                    raise ValueError(f"{value!r} in a list")
            found[name.decode()] = items
        elif kind in ("string", "number"):
            found[name.decode()] = value
        else:
            raise ValueError(f"no value at {value!r}")
        if next(rest)[0] != "line":
            raise ValueError(f"more than a value for {name!r}")
    return found


def _unquote(written: bytes) -> bytes:
    assert b"\0" not in written, "xl aborts with an assertion"
    inner, out, at = written[1:-1], b"", 0
    while at < len(inner):
        if inner[at] == b"\\"[0]:
            at += 1
            # xl drops a numeric escape. A KeyError here means that we wrote one.
            out += _ESCAPES[inner[at]]
        else:
            out += inner[at : at + 1]
        at += 1
    return out


_DISK_RULES = (
    ("", rb"[ \t\n]+(?=[^ \t\n]|\Z)"),
    ("format", rb"format=[^,]*,?"),
    ("cdrom", rb"devtype=cdrom,?"),
    ("access", rb"access=[^,]*,?"),
    ("backendtype", rb"backendtype=[^,]*,?"),
    ("vdev", rb"vdev=[^,]*,?"),
    ("target", rb"target=[^\n]*"),
    ("unknown", rb"[a-z][-a-z0-9]*=[^,],?"),
    ("positional", rb"[^=,]*,|[^=,]+,?"),
)


def disk(text: str) -> dict[str, bytes]:
    """The parameters of a disk specification. The rule with the longest match counts, and of equal ones the first."""
    data, found = text.encode(), {}
    while data:
        name, size = max(((name, len(m[0])) for name, rule in _DISK_RULES if (m := re.match(rule, data))), key=lambda one: one[1])
        if name in ("unknown", "positional") or name in found:
            raise ValueError(f"{name}: {data!r}")
        word = data[:size].removesuffix(b",")
        if name:
            found[name] = word.partition(b"=")[2]
        data = data[size:]
    return found


def vdev(text: str) -> int:
    """The number of a vdev; negative if libxl refuses it or computes a negative number."""
    integer = r"\s*[+-]?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)"
    pair = re.fullmatch(rf"d({integer})p({integer})", text, re.ASCII)
    disk = part = 0
    if pair and (disk := _c_integer(pair[1])) < 1 << 20 and (part := _c_integer(pair[2])) < 256:
        return _extended(disk, part)
    if (place := _matches(text, "xvd", (1 << 20) - 1, 255)) is not None:
        return _extended(*place)
    if text == "" or re.fullmatch(integer, text, re.ASCII):
        value = _c_integer(text or "0") % (1 << 64)
        return value if value < 1 << 31 else -1
    if (place := _matches(text, "hd", 3, 63)) is not None:
        return (3 if place[0] < 2 else 22) << 8 | (place[0] & 1) << 6 | place[1]
    if (place := _matches(text, "sd", 15, 15)) is not None:
        return 8 << 8 | place[0] << 4 | place[1]
    return -1


def _extended(disk: int, part: int) -> int:
    return 202 << 8 | disk << 4 | part if disk <= 15 and part <= 15 else 1 << 28 | disk << 8 | part


def _c_integer(text: str) -> int:
    text = text.strip()
    sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
    return sign * int(digits, 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") else 10)


def _matches(text: str, kind: str, most: int, parts: int) -> tuple[int, int] | None:
    if not text.startswith(kind):
        return None
    at, disk = len(kind), -1
    while at < len(text) and "a" <= text[at] <= "z":
        disk = (disk + 1) * 26 + ord(text[at]) - ord("a")
        at += 1
        if disk > most:
            return None
    rest = text[at:]
    if not rest:
        return disk, 0
    if rest.startswith("0") or not re.fullmatch(r"\s*[+-]?[0-9]+", rest, re.ASCII) or int(rest) > parts:
        return None
    return disk, int(rest)
