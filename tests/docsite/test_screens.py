"""The built site in a browser: nothing is wider than the screen, pictures are there, formulas are drawn."""

import html
import json
import re
import shutil
import subprocess

import pytest

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
  const found = {
    page, width,
    inner: frame.contentWindow.innerWidth,
    room: root.clientWidth,
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


@pytest.fixture(scope="module")
def measured(site, tmp_path_factory):
    """What the browser found, by page and width."""
    return measure(site, tmp_path_factory.mktemp("browser"))


def measure(site, profile):
    """Rows of every page of a built site at both widths."""
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if p.name != "404.html")
    file, rows = site / "measure.html", []
    for page in pages:
        text = SCRIPT.replace("PAGES", json.dumps([page])).replace("WIDTHS", json.dumps(WIDTHS))
        file.write_text(text)
        rows += browse(file, profile)
    file.unlink()
    return rows


def browse(file, profile):
    """What the script finds; the browser now and then does not start, and is asked again."""
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--dump-dom"),
        *("--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"),
        *(f"--user-data-dir={profile}", "--window-size=1400,1500", "--virtual-time-budget=20000"),
    ]
    for _ in range(4):
        try:
            command = [BROWSER, *options, file.as_uri()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except subprocess.TimeoutExpired:
            continue
        found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
        if found:
            return json.loads(html.unescape(found[1]))
    raise AssertionError(f"{BROWSER} measures nothing of {file.read_text()[-300:]}")


def test_nothing_scrolls_sideways(measured):
    assert {row["inner"] for row in measured} == set(WIDTHS)
    assert not [(row["page"], row["width"], row["wide"]) for row in measured if row["wide"] > row["room"]]


def test_pictures_are_there(measured):
    assert not [row["broken"] for row in measured if row["broken"]]
    with_pictures = {row["page"] for row in measured if row["pictures"]}
    assert {"index.html", "tutorials/train.html", "tutorials/dynamics.html"} <= with_pictures


def test_formulas_are_drawn(measured):
    assert not [(row["page"], row["flat"], row["raw"]) for row in measured if row["flat"] or row["raw"]]


def test_text_is_readable(measured):
    smallest = {(row["page"], row["width"]): min(row["sizes"], default=16.0) for row in measured}
    assert not {place: size for place, size in smallest.items() if size < 11}
