# SPDX-License-Identifier: BSD-2-Clause
"""How long a browser takes for a page with a time line of 5,000 lines. Exit code 1 over a bound, 2 without Chromium.

    python bench/page.py [--keep PAGE]

It prints two figures, each the median of several starts of headless Chromium. The first is the browser's own time from the begin of
the load to the complete layout. The second is the wall-clock time of a screenshot, minus that of an empty page.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from written import case, run, save

from harness import trace
from harness.report import case_timeline, html
from harness.report.gather import gather
from harness.results.model import Boot, Stamp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LINES, STARTS, BOUND = 5000, 7, 1.0
UNPAUSED, DIED = 5000.0, 40.0
# The page forbids scripts.
POLICY = re.compile(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>")
# At the end of a copy of the page. Reading a height forces the layout.
PROBE = "<script>addEventListener('load', () => { document.body.offsetHeight; document.title = 'laid out ' + performance.now() })</script>"


def evidence(directory: Path) -> None:
    """Write the logs of a failed case. Times are spread evenly over the boot."""
    directory.mkdir(parents=True, exist_ok=True)

    def moments(count: int) -> list[float]:
        return [DIED * (n + 1) / count for n in range(count)]

    console, index = b"", []
    for n, at in enumerate(moments(380)):
        index.append(f"{len(console)} {UNPAUSED + at:.6f}\n")
        console += b"xbd%d: features: flush, write_barrier <%d>, and more\r\n" % (n, n)
    console += b"panic: at the disco\r\n"
    (directory / "g.console.log").write_bytes(console)
    (directory / "g.console.log.idx").write_text("".join(index))
    xen = (f"(XEN) [{100 + at:12.6f}] d1v{n % 4} Bad GMFN {n:x} (MFN {n:x}) for level 1\n" for n, at in enumerate(moments(2200)))
    (directory / "xl-dmesg.log").write_text("".join(xen) + f"(XEN) [{100 + DIED:12.6f}] clocks\n")
    kernel = (f"[{50 + at:12.6f}] vif vif-1-{n} vif1.{n}: Guest Rx ready\n" for n, at in enumerate(moments(1000)))
    (directory / "dom0-dmesg.log").write_text("".join(kernel))
    changes = (f'[{50 + at:12.6f}] /local/domain/1/device/vif/{n}/state = "{n % 7}"\n' for n, at in enumerate(moments(1000)))
    (directory / "xenstore-changes.log").write_text("".join(changes))
    (directory / "xl-dmesg.clock").write_text(json.dumps({"monotonic": UNPAUSED + DIED, "uptime": 50 + DIED}))
    with (directory / trace.FILE).open("w") as file:
        for n, at in enumerate(moments(500), 1):
            begin = {
                "event": n,
                "in": 0,
                "at": at,
                "clock": UNPAUSED + at,
                "kind": "xl",
                "what": f"xl mem-set {n} 200m",
                "where": "lab",
            }
            file.write(json.dumps(begin) + "\n" + json.dumps({"event": n, "seconds": 0.1}) + "\n")


def page(root: Path) -> str:
    """The page of a run with one failed case, made by the project's own code."""
    stages = (Stamp("kernel", 1.0), Stamp("disk", 20.0))
    boot = Boot("g", stages, DIED, UNPAUSED, "g.console.log", death="panic: at the disco")
    failed = case("F", boots=(boot,), files=("g.console.log", "xl-dmesg.log", "dom0-dmesg.log"), directory="red")
    done = run(1, failed, *(case(name=f"test_{n}") for n in range(100)))
    path = save(root, done)
    evidence(path / "cases/red")
    report = gather(path, done, None)
    (red,) = (item for item in report.cases if item.result is failed)
    shown = case_timeline.build(path / "cases/red", "g.console.log", failed, red.events)
    if len(shown) != LINES:
        raise SystemExit(f"the time line has {len(shown)} lines instead of {LINES}: adapt evidence()")
    return html.render(path, report)


def browse(profile: Path, *words: str) -> tuple[float, str]:
    """The seconds that the browser ran, and its output."""
    argv = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,900",
        f"--user-data-dir={profile}",
    ]
    begun = time.perf_counter()
    done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=120, errors="replace", check=True)
    return time.perf_counter() - begun, done.stdout


def figures(name: str, seconds: list[float]) -> float:
    middle = statistics.median(seconds)
    print(f"{name:<58} {min(seconds):.2f} / {middle:.2f} / {max(seconds):.2f} s (min, median, max of {len(seconds)})")
    return middle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="PAGE", help="keep the page as this file")
    chosen = parser.parse_args()
    if not CHROMIUM:
        print("no chromium on this machine; apt-get install chromium")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        begun = time.process_time()
        text = page(root)
        print(f"page of {len(text) / 1e6:.1f} MB, rendered in {time.process_time() - begun:.2f} s of CPU")
        if chosen.keep:
            chosen.keep.write_text(text)
        (root / "page.html").write_text(text)
        (root / "probed.html").write_text(POLICY.sub("", text).replace("</body>", PROBE + "</body>"))
        (root / "empty.html").write_text("<!doctype html><title>empty</title><p>empty")
        shot = f"--screenshot={root / 'shot.png'}"
        browse(root / "profile", shot, f"file://{root / 'empty.html'}")  # creates the profile
        inside, empty, full = [], [], []
        for _ in range(STARTS):
            match = re.search(
                r"<title>laid out ([0-9.]+)", browse(root / "profile", "--dump-dom", f"file://{root / 'probed.html'}")[1]
            )
            if match is None:
                raise SystemExit("the browser did not finish the page")
            inside.append(float(match[1]) / 1000)
            empty.append(browse(root / "profile", shot, f"file://{root / 'empty.html'}")[0])
            full.append(browse(root / "profile", shot, f"file://{root / 'page.html'}")[0])
        laid_out = figures(f"{LINES} lines, load until laid out", inside)
        more = figures("browser, screenshot of the page", full) - figures("browser, screenshot of an empty page", empty)
        print(f"the page takes {more:.2f} s more than an empty page   bound {BOUND:.1f} s for each figure")
    return 0 if max(laid_out, more) < BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
