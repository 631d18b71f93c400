# SPDX-License-Identifier: BSD-2-Clause
"""The page in a real browser, from disk and without network access: guest output is shown and never run."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from written import case, run, save

from harness import report as reporting
from harness.report import site
from harness.results.model import Boot, Stamp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine; apt-get install chromium")

DO = "document.title='DONE'"
HOSTILE = (
    f'</pre></span></details><script>{DO}</script><img src=x onerror="{DO}"><svg onload="{DO}"><style>body{{display:none}}</style>'
    f"<meta http-equiv=refresh content='0;url=file:///etc/passwd'><a href=\"javascript:{DO}\">x</a>\x1b]0;DONE\x07\u202e\x00 &lt;b&gt;\r\n"
)


def browse(path: Path, tmp_path: Path, *words: str) -> str:
    argv = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    argv += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", *words, f"file://{path}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, errors="replace").stdout


@pytest.fixture
def page(tmp_path: Path) -> Path:
    boot = Boot("g", (Stamp("kernel", 1.0), Stamp("xen", 1.5)), 2.0, 100.0, "g.console.log", 0, "at the disco")
    red = case(
        "F", reason=HOSTILE, identity=HOSTILE, excerpt=HOSTILE * 3, title=HOSTILE, boots=(boot,), kernel="B", directory="one",
        files=("g.console.log", HOSTILE.replace("/", "")), metrics={HOSTILE: 1.0},
    )  # fmt: skip
    past = [run(n, case("P", metrics={HOSTILE: 1.0}), branch=HOSTILE) for n in range(4)]
    done = run(4, red, command=HOSTILE, branch=HOSTILE)
    for earlier in past:
        reporting.publish(save(tmp_path / "reports", earlier), earlier)
    path = save(tmp_path / "reports", done, {"one": HOSTILE.encode() * 100 + b"panic: at the disco\n\xff\xfe"})
    reporting.publish(path, done)
    # The page is a single file, so a copy elsewhere is complete.
    return Path(shutil.copy(path / "index.html", tmp_path / "alone.html"))


def test_guest_output_is_not_run(page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path, "--dump-dom")
    assert "<title>FreeBSD under Xen: 1 regression" in dom
    assert not re.search(r"<(script|img|style>body|iframe|a href=\"javascript)", dom)
    assert dom.count("<meta") == 3, "a guest's meta element is in the page"
    assert "Inputs</h2>" in dom, "the page is cut off"
    assert 'class="death"' in dom


def test_guest_output_is_not_run_on_the_site(page: Path, tmp_path: Path) -> None:
    site.build(tmp_path / "reports", tmp_path / "site")
    for name in ("index.html", "runs/run-004.html"):
        dom = browse(tmp_path / "site" / name, tmp_path, "--dump-dom")
        assert "<title>FreeBSD under Xen: " in dom
        assert not re.search(r"<(script|img|style>body|iframe|a href=\"javascript)", dom)
        assert dom.count("<meta") == 3, "a guest's meta element is in the page"
        assert dom.rstrip().endswith("</html>"), "the page is cut off"


@pytest.mark.parametrize("size", [(1200, 900), (400, 800)])
def test_page_is_drawn(page: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    shot = tmp_path / "shot.png"
    browse(page, tmp_path, f"--screenshot={shot}", f"--window-size={size[0]},{size[1]}")
    data = shot.read_bytes()
    assert struct.unpack(">II", data[16:24]) == size
    assert len(data) > 20_000, "the picture is empty"


def test_page_can_be_printed(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    browse(page, tmp_path, f"--print-to-pdf={target}")
    assert target.read_bytes().startswith(b"%PDF")
    assert target.stat().st_size > 10_000
