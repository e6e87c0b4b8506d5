"""A new user with the wheel and the built site: what its pages say, word for word, in an empty folder."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel in a folder of its own, nothing of this checkout."""
    pytest.importorskip("build", reason="needs the build package")
    out, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    from_wheel = ["--no-deps", "--no-index", "--find-links", str(out), "--target", str(target), "scfmlip"]
    for command in (
        ["build", "--wheel", "--outdir", str(out), str(ROOT)],
        ["pip", "install", "-q", *from_wheel],
    ):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return target


def blocks(page):
    """Code of a page, and what the page says that it prints ("" if nothing)."""
    found = []
    pattern = r'<div class="highlight">(<span class="filename">[^<]*</span>)?<pre>(.*?)</pre></div>'
    for title, block in re.findall(pattern, page.read_text(), re.DOTALL):
        text = html.unescape(re.sub(r"<[^>]*>", "", block)).rstrip("\n")
        if "it prints" in title:
            found[-1][1] = text
        else:
            found.append([text, ""])
    return found


def without_numbers(text):
    """Words of a text, in lines: numbers, and spaces that their lengths move, are the machine's own."""
    lines = [re.sub(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?|\bnan\b", "#", line) for line in text.splitlines()]
    return [" ".join(line.replace("-", " ").split()) for line in lines]


def environment(installed):
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join((str(installed / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    own = {"PATH": path, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return {**kept, **own, "COLUMNS": "100"}


def say(command, folder, env):
    """What a command prints; of shells also on standard error, as the pages have it."""
    where = subprocess.STDOUT if command[0] == "bash" else subprocess.PIPE
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=where, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + (done.stderr or "")[-2000:]
    return done.stdout


PAGES = {
    "install": "bash",
    "quickstart": "python",
    "tutorials/accelerate": "python",
    "tutorials/train": "bash",
    "tutorials/dynamics": "bash",
}


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_says_happens(page, site, installed, tmp_path):
    """Words are compared, numbers not; on pages beside the tutorials only what has an output is run."""
    env = environment(installed)
    where = say([sys.executable, "-c", "import scfmlip; print(scfmlip.__file__)"], tmp_path, env)
    assert where.startswith(str(installed))
    code = [block for block in blocks(site / f"{page}.html") if block[1] or page.startswith("tutorials")]
    assert len(code) > 1
    if PAGES[page] == "python":
        script = tmp_path / "script.py"
        script.write_text("\n".join(text for text, _ in code) + "\n")
        told = "\n".join(printed for _, printed in code if printed)
        assert without_numbers(say([sys.executable, script.name], tmp_path, env)) == without_numbers(told)
        return
    for text, told in code:
        printed = say(["bash", "-e", "-c", text], tmp_path, env)
        assert without_numbers(printed.rstrip()) == without_numbers(told), text
