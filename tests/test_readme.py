"""The README: its code, block after block as a reader would run it, its numbers, its length."""

import csv
import re
from pathlib import Path

import pytest
import torch
from mace_torch.mace_models import frames, mace_batch, mace_model
from models.cases import water

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_code_runs_in_order(tmp_path, monkeypatch, generator):
    """Names that the text does not make are the reader's own: a model, a batch, a crystal, atoms."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    model = mace_model()
    positions = 6 * torch.rand(12, 3, generator=generator, dtype=torch.float64)
    session = {
        "torch": torch,
        "model": model,
        "batch": mace_batch(frames(), model),
        "positions": positions.clone().requires_grad_(),
        "cell": 6 * torch.eye(3, dtype=torch.float64),
        "pbc": [True, True, True],
        "points": positions[:3] + 0.5,
        "electronegativity": torch.randn(12, generator=generator, dtype=torch.float64),
        "hardness": 1 + torch.rand(12, generator=generator, dtype=torch.float64),
        "atoms": water(),
    }
    for block in blocks:
        exec(compile(block, README.name, "exec"), session)
    assert session["density"].shape == (3,)
    assert session["forces"].shape == (12, 3)
    assert abs(session["solution"].charges.sum().item()) < 1e-9
    session["atoms"].info["charge"] = 0
    assert abs(session["atoms"].get_charges().sum()) < 1e-4


def test_it_is_short():
    assert len(README.read_text().splitlines()) < 150


def results():
    """Rows of the table of results: case, atoms, mode, and the text of its cells."""
    cases = {
        "MACE medium": "mace-medium",
        "MACE-POLAR-1-S shape": "polar-s",
        "MACE-POLAR-1-M shape": "polar-m",
    }
    modes = {"energy + forces": "forces", "training step": "train"}
    for line in README.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[1] in modes:
            name, _, size = cells[0].partition(", ")
            case = cases[name] + ("-solid" if "MgO" in size else "")
            yield case, int(size.split()[0].replace(",", "")), modes[cells[1]], cells[2:]


@pytest.mark.parametrize("row", list(results()), ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_results_are_those_of_the_rows(row):
    """Each line of the table is one run in bench/results, as it was measured."""
    case, atoms, mode, cells = row
    with open(ROOT / "bench" / "results" / "models-amd-epyc.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    theirs, ours, ratio, memory, agreement = cells
    found = False
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        if (a["case"], int(a["atoms"]), a["mode"]) != (case, atoms, mode):
            continue
        times = float(a["seconds"]), float(b["seconds"])
        written = float(theirs.removesuffix(" s")), float(ours.removesuffix(" s"))
        peaks = [float(text.replace(",", "")) for text in memory.removesuffix(" MiB").split(" → ")]
        same = all(abs(w - t) < 0.01 * t for w, t in zip(written, times, strict=True))
        same &= all(
            abs(p - float(r["peak_mib"])) < 0.001 * p + 0.5 for p, r in zip(peaks, (a, b), strict=True)
        )
        same &= ratio == f"**{times[0] / times[1]:.2g}x**"
        errors = [0.0 if text == "equal" else float(text) for text in agreement.split(", ")]
        same &= all(
            abs(e - float(b[key])) <= 0.5 * max(e, 1e-9)
            for e, key in zip(errors, ("energy_error", "force_error"), strict=True)
        )
        found |= same
    assert found
