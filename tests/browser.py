"""Opens a report in headless Chromium and tells what the browser made of it."""

import html
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 900
# Appended to the page: what the browser made of it, where --dump-dom shows it.
PROBE = """<script>addEventListener("load", () => {
const images = [...document.images].map(i => [i.alt, i.complete ? i.naturalWidth : 0]);
const rows = [...document.querySelectorAll(".results tr")].map(
  r => [...r.cells].map(c => c.textContent));
const out = document.createElement("pre");
out.id = "probe";
out.textContent = JSON.stringify({images, rows, wide: document.documentElement.scrollWidth,
  missing: document.querySelectorAll(".missing").length, text: document.body.innerText,
  injected: window.injected === true});
document.body.append(out); });</script>"""


def look_at(report, tmp_path, *, drawn=False):
    """What the browser shows: images (caption, width), rows of tables, text; skips without one.

    Asserts what holds for every report: pictures that load, nothing wider than the window, nothing
    run that a name brought along; and that something is drawn, if asked.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed, looked for {', '.join(BROWSERS)}")
    page = tmp_path / "page.html"
    page.write_text(report.read_text().replace("</body>", f"{PROBE}</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--window-size={WIDTH},1200", f"--user-data-dir={tmp_path / 'profile'}"]
    dumped = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = json.loads(
        html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', dumped, re.DOTALL)[1])
    )
    assert all(width > 0 for _, width in found["images"]), found["images"]
    assert found["wide"] <= WIDTH
    assert not found["injected"]
    if not drawn:
        return found
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*command, f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    with Image.open(shot) as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100
    return found
