"""The README's code, block after block in one session, as a reader would run it."""

import re
from pathlib import Path

import torch
from mace_torch.mace_models import frames, mace_batch, mace_model

README = Path(__file__).parents[1] / "README.md"


def test_code_runs_in_order(tmp_path, monkeypatch, generator):
    """Names that the text does not make are the reader's own: a model, a batch, a crystal, a map."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 5
    model = mace_model()
    positions = 6 * torch.rand(12, 3, generator=generator, dtype=torch.float64)
    batch_idx = torch.tensor([0] * 5 + [1] * 7)
    session = {
        "model": model,
        "mace_model": model,
        "batch": mace_batch(frames(), model),
        "positions": positions,
        "cell": 6 * torch.eye(3, dtype=torch.float64),
        "pbc": [True, True, True],
        "multipoles": torch.randn(12, 4, generator=generator, dtype=torch.float64),
        "points": positions[:3] + 0.5,
        "electronegativity": torch.randn(12, generator=generator, dtype=torch.float64),
        "hardness": 1 + torch.rand(12, generator=generator, dtype=torch.float64),
        "update": lambda state, level, source: 0.3 * torch.tanh(state) + source - level[batch_idx][:, None],
        "state": torch.zeros(12, 1, dtype=torch.float64),
        "parameters": (torch.randn(12, 1, generator=generator, dtype=torch.float64),),
        "batch_idx": batch_idx,
    }
    for block in blocks:
        exec(compile(block, README.name, "exec"), session)
    assert session["density"].shape == (3,)
    assert abs(float(session["solution"].state.sum())) < 1e-9
    assert (tmp_path / "model.safetensors").exists()
