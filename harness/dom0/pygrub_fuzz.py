# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: run pygrub on mutated disk images, one process per image.

    pygrub_fuzz IMAGE menu|image FIRST COUNT DIRECTORY MENU-OFFSET MENU-LENGTH PYGRUB

The seeds of the COUNT mutations start at FIRST. pygrub and its imports are loaded once, and each run is a fork: this is faster than
a new interpreter for each run. The program prints one line of JSON for each run with another exit status than 0 or 1, and a last
line with the counts.
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
import site
import sys
import time
from types import CodeType

# A run that uses this much CPU time counts as endless, however busy the machine is.
CPU_SECONDS = 2
# A run that takes this long counts as endless, even if it sleeps.
SECONDS = 20
WORDS = [
    b"title", b"kernel", b"initrd", b"root", b"default", b"timeout", b"password", b"(hd0,0)", b"(hd0,0,a)", b"(hd99999999999)",
    b"=", b"\t", b" ", b"\r", b"\0", b"\xff", b"/boot/kernel/kernel", b"../../../../etc/passwd", b"%s%n", b"'", b'"', b"saved",
    b"-1", b"99999999999999999999", b"\n\n", b"{", b"}", b"menuentry", b"A" * 300,
]  # fmt: skip


def mutate_menu(rng: random.Random, text: bytes) -> bytes:
    """Insert words, remove bytes and change bytes. The length stays the same, because the disk image stores the file in place."""
    size = len(text)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(text) or 1)
        kind = rng.randrange(3)
        if kind == 0:
            text = text[:at] + rng.choice(WORDS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randrange(1, 20) :]
        else:
            text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    return text[:size].ljust(size, b"\n")


def mutate_image(rng: random.Random, image: bytearray) -> bytearray:
    """Truncate the image, flip bits of its metadata, or overwrite 32-bit words of it with extreme values."""
    kind = rng.randrange(10)
    if kind == 0:
        del image[rng.randrange(len(image)) :]
        return image
    for _ in range(rng.randrange(1, 24)):
        # The superblock is at 8 KiB, followed by cylinder groups and inodes. The rest is mostly file data.
        at = 8192 + rng.randrange(1400) if rng.random() < 0.5 else rng.randrange(min(len(image), 1 << 18))
        if kind < 6:
            image[at] ^= 1 << rng.randrange(8)
        else:
            image[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
    return image


def run_once(code: CodeType, pygrub: str, image: str, directory: str) -> tuple[str, float]:
    """Run pygrub on ``image`` in a child. Returns its end (``0``, ``1``, ``signal 11``, ``hang``) and its duration in seconds."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_in_child(code, pygrub, image, directory)
    # SIGALRM instead of polling: on an emulated CPU, polling costs as much as the run itself.
    signal.signal(signal.SIGALRM, _timed_out)
    signal.alarm(SECONDS)
    try:
        _, status = os.waitpid(child, 0)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hang", time.monotonic() - begun
    finally:
        signal.alarm(0)
    end = "signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else str(os.WEXITSTATUS(status))
    return "hang" if end == "signal %d" % signal.SIGXCPU else end, time.monotonic() - begun


def _run_in_child(code: CodeType, pygrub: str, image: str, directory: str) -> None:
    status = 99
    try:
        os.chdir(directory)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.dup2(os.open(directory + "/error", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv = [pygrub, "-q", "--output-format=simple0", "--output-directory=" + directory + "/out", image]
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS + 10)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        exec(code, {"__name__": "__main__", "__file__": pygrub})
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else (1 if exc.code else 0)
    except BaseException as exc:
        os.write(2, ("%s: %s" % (type(exc).__name__, exc)).encode()[:2000])
        status = 1
    os._exit(status)


def _timed_out(number: int, frame: object) -> None:
    raise TimeoutError


def preload(pygrub: str, image: str) -> CodeType:
    """Compile pygrub, and import the modules that it imports: importing them in each child took half of a run's time.

    This also opens ``image``, because libfsimage loads its file systems when it opens the first volume.
    """
    # pygrub starts with the site packages (this program may run with -S), its own directory and one that it adds itself.
    site.main()
    sys.path[:1] = [os.path.dirname(pygrub), os.path.dirname(pygrub) + "/../lib/python"]
    with open(pygrub, "rb") as file:
        text = file.read()
    for node in ast.parse(text).body:
        for name in node.names if isinstance(node, ast.Import) else ():
            with contextlib.suppress(ImportError):
                __import__(name.name)
    with contextlib.suppress(KeyError, AttributeError, OSError):
        sys.modules["xenfsimage"].open(image, 0).close()
    # Otherwise the garbage collector of each child would copy every page of these objects.
    gc.freeze()
    return compile(text, pygrub, "exec")


def main() -> None:
    source, kind, first, count, directory, offset, length, pygrub = sys.argv[1:]
    with open(source, "rb") as file:
        base = file.read()
    os.makedirs(directory + "/out", exist_ok=True)
    code = preload(pygrub, source)
    counts: dict[str, int] = {}
    slowest = 0.0
    path = directory + "/image"
    for seed in range(int(first), int(first) + int(count)):
        rng = random.Random(seed)
        if kind == "menu":
            at, size = int(offset), int(length)
            image = bytearray(base)
            image[at : at + size] = mutate_menu(rng, base[at : at + size])
        else:
            image = mutate_image(rng, bytearray(base))
        with open(path, "wb") as file:
            file.write(image)
        end, seconds = run_once(code, pygrub, path, directory)
        counts[end] = counts.get(end, 0) + 1
        slowest = max(slowest, seconds)
        if end not in ("0", "1"):
            print(json.dumps({"seed": seed, "how": end, "seconds": round(seconds, 2)}), flush=True)
        for name in os.listdir(directory + "/out"):
            os.unlink(directory + "/out/" + name)
    print(json.dumps({"counts": counts, "slowest": round(slowest, 2)}), flush=True)


if __name__ == "__main__":
    main()
