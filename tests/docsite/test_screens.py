"""The built site in a browser: nothing is wider than the screen, pictures are there, formulas are drawn."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDTHS = (1280, 390)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
]

# a headless window is at least 500 pixels wide: pages are measured in frames of their own
SCRIPT = """
<body><pre id="found"></pre><script>
async function measure(page, width) {
  const frame = document.createElement('iframe');
  frame.style = `width:${width}px;height:1400px;border:0`;
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page;
  document.body.append(frame);
  await loaded;
  const inside = frame.contentDocument, root = inside.documentElement;
  await Promise.all([...inside.images].map(image => image.decode().catch(() => {})));
  const found = {
    page, width,
    inner: frame.contentWindow.innerWidth,
    wide: Math.max(root.scrollWidth, inside.body.scrollWidth),
    broken: [...inside.images].filter(image => !image.naturalWidth).map(image => image.src),
    pictures: inside.images.length,
    flat: [...inside.querySelectorAll('math')].filter(m => !m.getBoundingClientRect().height).length,
    raw: [...inside.querySelectorAll('article p, article li, article td')]
      .filter(e => /\\$\\$|\\\\\\(|\\\\frac/.test(e.innerText)).map(e => e.innerText.slice(0, 80)),
    sizes: [...new Set([...inside.querySelectorAll('article p, article td, article pre, article li')]
      .map(e => parseFloat(inside.defaultView.getComputedStyle(e).fontSize)))],
  };
  frame.remove();
  return found;
}
(async () => {
  const rows = [];
  for (const page of PAGES) for (const width of WIDTHS) rows.push(await measure(page, width));
  document.getElementById('found').textContent = JSON.stringify(rows);
})();
</script></body>
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, says nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the browser found, by page and width."""
    pytest.importorskip("mkdocs", reason="needs scfmlip[docs]")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return measure(site, tmp_path_factory.mktemp("browser"))


def measure(site, profile):
    """Rows of every page of a built site at both widths."""
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if p.name != "404.html")
    text = SCRIPT.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(WIDTHS))
    (site / "measure.html").write_text(text)
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--dump-dom"),
            *(f"--user-data-dir={profile}", "--window-size=1400,1500", "--virtual-time-budget=600000"),
        ]
        address = f"http://127.0.0.1:{server.server_address[1]}/measure.html"
        done = subprocess.run(
            [BROWSER, *options, address], capture_output=True, text=True, timeout=500, check=False
        )
        server.shutdown()
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    rows = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert len(rows) == len(pages) * len(WIDTHS)
    return rows


def test_nothing_scrolls_sideways(measured):
    assert {row["inner"] for row in measured} == set(WIDTHS)
    assert not [(row["page"], row["width"], row["wide"]) for row in measured if row["wide"] > row["inner"]]


def test_pictures_are_there(measured):
    assert not [row["broken"] for row in measured if row["broken"]]
    with_pictures = {row["page"] for row in measured if row["pictures"]}
    assert {"index.html", "tutorials/train.html", "tutorials/dynamics.html"} <= with_pictures


def test_formulas_are_drawn(measured):
    assert not [(row["page"], row["flat"], row["raw"]) for row in measured if row["flat"] or row["raw"]]


def test_text_is_readable(measured):
    smallest = {(row["page"], row["width"]): min(row["sizes"], default=16.0) for row in measured}
    assert not {place: size for place, size in smallest.items() if size < 11}
