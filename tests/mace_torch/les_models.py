"""A small MACELES with random weights, on `les` or on the dense stand-in where it is missing."""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch

try:
    import les  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).parents[1] / "stubs"))


# of the package until April 2026, and since
NORM_FACTORS = (90.0474, 90.4756)


def les_model(
    les_arguments=None, heads=("Default",), num_interactions=2, norm_factor=NORM_FACTORS[1], **options
):
    """In PyTorch's default dtype."""
    import mace  # noqa: F401  (before e3nn, which it teaches to load its constants)
    from e3nn import o3
    from mace import modules
    from mace.modules.extensions import MACELES

    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MACELES(
            les_arguments={"use_atomwise": False, **(les_arguments or {})},
            r_max=3.0,
            num_bessel=6,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=num_interactions,
            num_elements=3,
            hidden_irreps=o3.Irreps("8x0e + 8x1o"),
            MLP_irreps=o3.Irreps("8x0e"),
            atomic_energies=np.zeros((len(heads), 3)),
            avg_num_neighbors=10.0,
            atomic_numbers=[1, 6, 8],
            correlation=2,
            gate=torch.nn.functional.silu,
            atomic_inter_scale=np.linspace(1.0, 1.5, len(heads)),
            atomic_inter_shift=np.zeros(len(heads)),
            heads=list(heads),
            **options,
        )
    model.les.ewald.norm_factor = norm_factor
    return model
