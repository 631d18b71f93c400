# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: run pygrub on mutated disk images, one process per image.

    pygrub_fuzz IMAGE menu|image FIRST COUNT DIRECTORY MENU-OFFSET MENU-LENGTH PYGRUB

The seeds of the COUNT mutations start at FIRST. pygrub and its imports are loaded once, and each run is a fork: this is faster than
a new interpreter for each run. The program prints one line of JSON for each run with another exit status than 0 or 1. It prints one for
each file that pygrub changed outside DIRECTORY/out. The last line has the counts. It needs Python 3.8 for sys.addaudithook().
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


# Audit events of calls that change a file, with the positions of the files in their arguments (Python's "Audit events table").
CHANGES = {
    "os.chmod": (0,), "os.chown": (0,), "os.link": (1,), "os.mkdir": (0,), "os.mkfifo": (0,), "os.mknod": (0,), "os.remove": (0,),
    "os.rename": (0, 1), "os.rmdir": (0,), "os.symlink": (1,), "os.truncate": (0,), "os.utime": (0,),
}  # fmt: skip


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
        _report_changes(directory)
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


def _report_changes(directory: str) -> None:
    """From now on, write the path of each file that this process changes outside ``directory``/out to ``directory``/strays.

    The hook sees pygrub alone. A search for new files would also find those of other programs in dom0.
    """
    out = directory + "/out"
    strays = os.open(directory + "/strays", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def hook(event: str, words: tuple[object, ...]) -> None:
        if event == "open":
            changed = words[:1] if isinstance(words[2], int) and words[2] & writes else ()
        else:
            changed = tuple(words[n] for n in CHANGES.get(event, ()))
        for name in changed:
            if isinstance(name, (str, bytes)):
                path = os.path.realpath(os.fsdecode(name))
                # pygrub tries to create its output directory.
                if path not in (out, os.devnull) and not path.startswith(out + "/"):
                    os.write(strays, json.dumps(path).encode() + b"\n")

    sys.addaudithook(hook)


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
    directory = os.path.realpath(directory)
    os.makedirs(directory + "/out", exist_ok=True)
    open(directory + "/strays", "w").close()
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
        if end == "hang":
            # dom0 charges a process for the time in which its emulated CPU stood still. A pygrub without end has no end again.
            end, seconds = run_once(code, pygrub, path, directory)
        counts[end] = counts.get(end, 0) + 1
        slowest = max(slowest, seconds)
        if end not in ("0", "1"):
            print(json.dumps({"seed": seed, "how": end, "seconds": round(seconds, 2)}), flush=True)
        for name in os.listdir(directory + "/out"):
            os.unlink(directory + "/out/" + name)
    with open(directory + "/strays") as file:
        for line in sorted(set(file)):
            print(json.dumps({"wrote": json.loads(line)}))
    print(json.dumps({"counts": counts, "slowest": round(slowest, 2)}), flush=True)


if __name__ == "__main__":
    main()
