"""Small MACE models of every interaction block, with random weights, and batches for them."""

import contextlib
import copy
import io
import warnings
from functools import cache

import numpy as np
import pytest
import torch

from scfmlip import accelerate, restore

ELEMENTS = (1, 8, 14)


@cache
def mace_model(
    interaction: str = "RealAgnosticResidualInteractionBlock",
    first: str | None = None,
    hidden: str = "8x0e + 8x1o",
    layers: int = 2,
    edge: str | None = None,
    correlation: int = 2,
    max_ell: int = 2,
    agnostic: bool = False,
    scaled: bool = True,
    cueq_config=None,
    use_reduced_cg: bool = True,
):
    """A MACE or ScaleShiftMACE in float64."""
    import mace  # noqa: F401  (before e3nn, which it teaches to load its constants)
    from e3nn import o3
    from mace import modules

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    options = {"atomic_inter_scale": 1.3, "atomic_inter_shift": 0.1} if scaled else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = (modules.ScaleShiftMACE if scaled else modules.MACE)(
            r_max=3.5,
            num_bessel=6,
            num_polynomial_cutoff=5,
            max_ell=max_ell,
            interaction_cls=modules.interaction_classes[interaction],
            interaction_cls_first=modules.interaction_classes[first or interaction],
            num_interactions=layers,
            num_elements=len(ELEMENTS),
            hidden_irreps=o3.Irreps(hidden),
            edge_irreps=None if edge is None else o3.Irreps(edge),
            MLP_irreps=o3.Irreps("8x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.array([-1.0, -2.0, -3.0]),
            avg_num_neighbors=9.0,
            atomic_numbers=list(ELEMENTS),
            correlation=correlation,
            radial_MLP=[16, 16],
            radial_type="bessel",
            use_agnostic_product=agnostic,
            cueq_config=cueq_config,
            use_reduced_cg=use_reduced_cg,
            **options,
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.1)
    return model


def frames(n_frames: int = 2, n_atoms: int = 7, isolated: bool = True):
    """Periodic random structures; the last one a molecule with one atom out of reach."""
    from ase import Atoms

    generator = np.random.default_rng(3)
    found = []
    for i in range(n_frames):
        cell = np.diag([5.0, 5.5, 6.0]) + 0.3 * generator.normal(size=(3, 3))
        positions = generator.uniform(size=(n_atoms, 3)) @ cell
        numbers = generator.choice(ELEMENTS, n_atoms)
        molecule = isolated and i == n_frames - 1
        if molecule:
            positions[-1] += 100.0
        found.append(Atoms(numbers, positions, cell=None if molecule else cell, pbc=not molecule))
    return found


def mace_batch(atoms_list, model, dtype=torch.float64):
    """What a MACE model takes."""
    from mace import data, tools
    from mace.tools import torch_geometric

    table = tools.AtomicNumberTable(list(ELEMENTS))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    sets = [
        data.AtomicData.from_config(data.config_from_atoms(a), z_table=table, cutoff=float(model.r_max))
        for a in atoms_list
    ]
    batch = next(iter(torch_geometric.dataloader.DataLoader(sets, batch_size=len(sets)))).to_dict()
    torch.set_default_dtype(before)
    return batch


def copies(model):
    """A deep copy, and what comes back from a file."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return copy.deepcopy(model), torch.load(file, weights_only=False)


def with_lora(model, first, size, told=contextlib.nullcontext):
    """
    The model with mace-torch's low-rank layers, and it accelerated; they share their parameters.

    ``first`` is "lora" or "accelerate", ``size`` that of the layers' weights, ``told`` a context that
    expects what `accelerate` says of the layers.
    """
    lora = pytest.importorskip("mace.modules.lora")
    model = copy.deepcopy(model)
    if first == "lora":
        adapted = lora.inject_LoRAs(model, rank=2)
        with told():
            fast = accelerate(adapted)
    else:
        fast = lora.inject_LoRAs(copy.deepcopy(accelerate(model)), rank=2)
        adapted = restore(fast)
    with torch.no_grad():
        for name, parameter in fast.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, size)
    return adapted, fast
