"""Models of atoms that several ranks share, without an engine: all outputs are those of one process."""

from pathlib import Path

import pytest
from distributed.ranks import run_ranks

SCRIPT = Path(__file__).with_name("models_on_ranks.py")
RULES = (
    *("fixed", "local", "latent", "split", "qeq", "qeq_widths", "qeq_charges", "convex", "general"),
    *("affine", "affine_free", "mlp", "many_body", "passive", "recursion"),
    *("qeq_narrow", "qeq_feedback", "qeq_screened"),
)
SMOOTHED = ("local", "qeq", "convex", "affine", "many_body")


def check(n, *cases):
    pytest.importorskip("matscipy", reason="neighbour lists come from matscipy")
    out = run_ranks(n, SCRIPT, *cases, timeout=1500).stdout
    assert [line.split(": ")[0] for line in out.splitlines() if "exchanges" in line] == list(cases)


def test_two_ranks():
    """Neighbours of narrow Gaussians, charges outside; a network that sees charges, a cluster."""
    check(2, "local:crystal:narrow:outside", "qeq_feedback:cluster:plain")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["crystal", "slab", "cluster"])
@pytest.mark.parametrize("n", [2, 3])
def test_every_rule(n, where):
    """With charges outside; the last of three ranks has no atoms."""
    check(n, *(f"{rule}:{where}:outside" for rule in RULES), *(f"{rule}:{where}" for rule in RULES[::4]))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["crystal", "slab"])
@pytest.mark.parametrize("n", [2, 3])
def test_narrow_gaussians(n, where):
    check(n, *(f"{rule}:{where}:narrow" for rule in SMOOTHED), f"affine:{where}:narrow:outside")
