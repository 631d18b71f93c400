# SPDX-License-Identifier: BSD-2-Clause
"""Runs in dom0, with its Python and nothing but its standard library: pygrub against mutated images, one process each.

pygrub and what it imports are loaded once and each run is a fork, so that a run costs its own work alone. Prints a line of
JSON for each run that did not end by itself with status 0 or 1, and one at the end with the counts.

    python3 pygrub_fuzz.py PYGRUB IMAGE menu|image FIRST COUNT DIRECTORY MENU-OFFSET MENU-LENGTH
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import random
import resource
import signal
import sys
import time
from types import CodeType

# A run that uses up the first is taken for one without end, whatever else the machine does; the second is for one that sleeps.
PROCESSOR_SECONDS = 2
SECONDS = 20
WORDS = [
    b"title", b"kernel", b"initrd", b"root", b"default", b"timeout", b"password", b"(hd0,0)", b"(hd0,0,a)", b"(hd99999999999)",
    b"=", b"\t", b" ", b"\r", b"\0", b"\xff", b"/boot/kernel/kernel", b"../../../../etc/passwd", b"%s%n", b"'", b'"', b"saved",
    b"-1", b"99999999999999999999", b"\n\n", b"{", b"}", b"menuentry", b"A" * 300,
]  # fmt: skip


def mutate_menu(chance: random.Random, text: bytes) -> bytes:
    """Words in and out, lines doubled; the length stays, for the file's place on the disk is fixed."""
    size = len(text)
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(text) or 1)
        kind = chance.randrange(3)
        if kind == 0:
            text = text[:at] + chance.choice(WORDS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + chance.randrange(1, 20) :]
        else:
            text = text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
    return text[:size].ljust(size, b"\n")


def mutate_image(chance: random.Random, image: bytearray) -> bytearray:
    """Bits of metadata flipped, words of it blown up, or the image cut short."""
    kind = chance.randrange(10)
    if kind == 0:
        del image[chance.randrange(len(image)) :]
        return image
    for _ in range(chance.randrange(1, 24)):
        # The super block at 8 KiB, cylinder groups and inodes after it; the rest is mostly file data.
        at = 8192 + chance.randrange(1400) if chance.random() < 0.5 else chance.randrange(min(len(image), 1 << 18))
        if kind < 6:
            image[at] ^= 1 << chance.randrange(8)
        else:
            image[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
    return image


def once(code: CodeType, pygrub: str, path: str, directory: str) -> tuple[str, float]:
    """One run in a child; how it ended (``0``, ``1``, ``signal 11``, ``hang``) and after how many seconds."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        ended = 99
        try:
            os.chdir(directory)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1):
                os.dup2(null, fd)
            os.dup2(os.open(directory + "/error", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.argv = [pygrub, "-q", "--output-format=simple0", "--output-directory=" + directory + "/out", path]
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS + 10)
            resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 5))
            exec(code, {"__name__": "__main__", "__file__": pygrub})
            ended = 0
        except SystemExit as exc:
            ended = exc.code if isinstance(exc.code, int) else (1 if exc.code else 0)
        except BaseException as exc:
            os.write(2, f"{type(exc).__name__}: {exc}".encode()[:2000])
            ended = 1
        os._exit(ended)
    # Not polled: on an emulated CPU looking costs as much as the run itself.
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        _, status = os.waitpid(child, 0)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hang", time.monotonic() - begun
    finally:
        signal.alarm(0)
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else str(os.WEXITSTATUS(status))
    return "hang" if how == f"signal {signal.SIGXCPU}" else how, time.monotonic() - begun


def _late(number: int, frame: object) -> None:
    raise TimeoutError


def preload(pygrub: str, image: str) -> CodeType:
    """pygrub's code. What it imports is imported here, so that no child has to: that was half of a run's time.

    And libfsimage has its file systems loaded, which it does when it is asked for the first volume.
    """
    # pygrub's own sys.path, and what it adds to it.
    sys.path[:1] = [os.path.dirname(pygrub), os.path.dirname(pygrub) + "/../lib/python"]  # noqa: PTH120
    with open(pygrub, "rb") as file:  # noqa: PTH123
        text = file.read()
    for node in ast.parse(text).body:
        for name in node.names if isinstance(node, ast.Import) else ():
            with contextlib.suppress(ImportError):
                __import__(name.name)
    with contextlib.suppress(KeyError, AttributeError, OSError):
        sys.modules["xenfsimage"].open(image, 0).close()
    # A child's garbage collection would otherwise copy every page of these.
    gc.freeze()
    return compile(text, pygrub, "exec")


def main() -> None:
    pygrub, source, kind, first, count, directory, offset, length = sys.argv[1:]
    base = open(source, "rb").read()  # noqa: SIM115, PTH123
    os.makedirs(directory + "/out", exist_ok=True)  # noqa: PTH103
    code = preload(pygrub, source)
    counts: dict[str, int] = {}
    slowest = 0.0
    path = directory + "/image"
    for seed in range(int(first), int(first) + int(count)):
        chance = random.Random(seed)
        if kind == "menu":
            at, size = int(offset), int(length)
            image = bytearray(base)
            image[at : at + size] = mutate_menu(chance, base[at : at + size])
        else:
            image = mutate_image(chance, bytearray(base))
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(image)
        how, seconds = once(code, pygrub, path, directory)
        counts[how] = counts.get(how, 0) + 1
        slowest = max(slowest, seconds)
        if how not in ("0", "1"):
            print(json.dumps({"seed": seed, "how": how, "seconds": round(seconds, 2)}), flush=True)
        for name in os.listdir(directory + "/out"):  # noqa: PTH208
            os.unlink(directory + "/out/" + name)  # noqa: PTH108
    print(json.dumps({"counts": counts, "slowest": round(slowest, 2)}), flush=True)


if __name__ == "__main__":
    main()
