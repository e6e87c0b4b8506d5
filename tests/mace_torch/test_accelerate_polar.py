"""accelerate(PolarMACE) against mace-torch's own, random weights, every boundary, and the way back."""

import contextlib
import copy
import io
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("graph_longrange", reason="needs graph-longrange")
if not hasattr(pytest.importorskip("mace.modules.extensions"), "PolarMACE"):
    pytest.skip("needs mace-torch 0.3.16", allow_module_level=True)

from tolerances import RELATIVE, assert_close

from mace_torch.mace_models import with_lora
from mace_torch.polar_models import batch_of, polar_model, random_frames, shared_polar_model
from scfmlip import accelerate, is_accelerated, restore
from scfmlip.mace_torch import polar_tables
from scfmlip.mace_torch.swapped import Swapped

T, F = True, False
PERIODIC, SLAB, MOLECULE = (T, T, T), (T, T, F), (F, F, F)
BATCHES = {
    "periodic": [PERIODIC],
    "slab": [SLAB],
    "molecule": [MOLECULE],
    "molecules": [MOLECULE, MOLECULE, MOLECULE],
    "mixed": [PERIODIC, SLAB, MOLECULE],
}
BOX = {"mixed": 3.5, "slab": 5.0}  # angstrom, see random_frames
# what the reference gets wrong: mace-torch issue 1642; checked by finite differences below
WRONG_THERE = {"stress", "virials", "atomic_stresses", "atomic_virials"}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def frames_of(systems):
    box = BOX.get(systems, 7.0)
    return random_frames(BATCHES[systems], n_atoms=4 if box < 4 else 9, box=box)


def outputs(model, batch, **options):
    return model({k: v.clone() for k, v in batch.items()}, **options)


def compare(model, batch, tolerance, compat=None, **options):
    theirs = outputs(model, batch, **options)
    ours = outputs(accelerate(model, compat=compat), batch, **options)
    assert theirs.keys() == ours.keys()
    for key, want in theirs.items():
        got = ours[key]
        if want is None or got is None:
            assert got is want, key
        elif key not in WRONG_THERE:
            assert got.dtype == want.dtype, key
            assert_close(got.detach(), want.detach(), tolerance)


@pytest.mark.parametrize("systems", BATCHES)
@pytest.mark.parametrize(("l_max", "feature_l_max", "steps"), [(1, 1, 2), (0, 0, 1), (0, 1, 3), (1, 0, 1)])
def test_equals_the_original(l_max, feature_l_max, steps, systems):
    model = shared_polar_model(
        atomic_multipoles_max_l=l_max,
        field_feature_max_l=feature_l_max,
        num_recursion_steps=steps,
    )
    batch = batch_of(frames_of(systems), model)
    # beside a crystal mace-torch puts a molecule into a box
    compat = "mace" if systems == "mixed" else None
    compare(model, batch, 1e-9, compat, compute_stress=systems == "periodic")


@pytest.mark.parametrize("compat", [None, "mace"])
def test_a_system_does_not_depend_on_the_others_of_its_batch(compat):
    """By default; with compat as in mace-torch a molecule does, and a slab or crystal never."""
    frames = random_frames([PERIODIC, MOLECULE, SLAB, MOLECULE], n_atoms=4, box=3.5)
    model = polar_model(hidden_irreps="8x0e", num_interactions=1)
    fast = accelerate(model, compat=compat)
    together = outputs(fast, batch_of(frames, model))
    ends = np.cumsum([len(atoms) for atoms in frames])
    for i, atoms in enumerate(frames):
        alone = outputs(fast, batch_of([atoms], model))
        mine = slice(ends[i] - len(atoms), ends[i])
        off = [float((alone["energy"][0] - together["energy"][i]).detach().abs())]
        off += [
            float((alone[key] - together[key][mine]).detach().abs().max())
            for key in ("forces", "charges", "spins")
        ]
        if compat is None or i in (0, 2):
            assert max(off) < 1e-11
        else:
            assert min(off) > 1e-6


def test_unknown_compat():
    with pytest.raises(ValueError, match="compat must be None or 'mace', got 'graph_longrange'"):
        accelerate(shared_polar_model(), compat="graph_longrange")


def test_compat_is_kept_and_given_later(tmp_path):
    """By copies, files and mace-torch's tools."""
    from mace.tools.scripts_utils import extract_model

    frames = random_frames([PERIODIC, MOLECULE], n_atoms=4, box=3.5)
    model = polar_model(hidden_irreps="8x0e", num_interactions=1)
    batch = batch_of(frames, model)
    want = outputs(model, batch)["energy"].detach()
    fast = accelerate(accelerate(model), compat="mace")
    torch.save(fast, tmp_path / "m.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = extract_model(fast)
    for m in (fast, copy.deepcopy(fast), torch.load(tmp_path / "m.pt", weights_only=False), built):
        assert_close(outputs(m, batch)["energy"].detach(), want, 1e-10)
    assert float((outputs(accelerate(model), batch)["energy"].detach() - want).abs().max()) > 1e-4


ROUNDED = [
    ({}, ("periodic", "slab", "molecule", "box", "mixed")),
    (
        {"atomic_multipoles_max_l": 0, "field_feature_max_l": 0, "num_recursion_steps": 1},
        ("slab", "molecule"),
    ),
    ({"atomic_multipoles_max_l": 0, "field_si": True}, ("periodic", "molecule")),
    (
        {
            "field_feature_max_l": 0,
            "atomic_multipoles_smearing_width": 1.1,
            "field_feature_widths": [0.9, 1.3, 2.7],
            "field_si": True,
            "include_electrostatic_self_interaction": False,
        },
        ("periodic", "slab", "molecule"),
    ),
]


@pytest.mark.parametrize(("options", "cases"), ROUNDED, ids=["l1", "l0", "l01_self", "l10_widths"])
def test_constants_rounded_when_the_model_was_made(options, cases, monkeypatch):
    """Built in float32, run in float64: the original's numbers to 1e-9, or its features to 1e-11."""
    model = polar_model(dtype=torch.float32, hidden_irreps="8x0e + 8x1o", **options).double()
    for case in cases:
        frames = random_frames([MOLECULE], n_atoms=4, box=3.5) if case == "box" else frames_of(case)
        batch = batch_of(frames, model)
        more = {"use_pbc_evaluator": True} if case == "box" else {}
        fast = accelerate(model, compat="mace" if case == "mixed" else None)
        theirs, ours = outputs(model, batch, **more), outputs(fast, batch, **more)
        with monkeypatch.context() as context:  # the constants made anew
            context.setattr(polar_tables, "read_tables", lambda model: None)
            fresh = accelerate(model, compat="mace" if case == "mixed" else None)
            anew = outputs(fresh, batch, **more)
        # what a change of the features by 1e-11 of themselves would do: random networks make much of it
        nudged = copy.deepcopy(model)
        nudged.field_feature_norms.mul_(1 + 1e-11)
        moved = outputs(nudged, batch, **more)
        for key in ("energy", "electrostatic_energy", "electron_energy", "forces", "charges", "dipole"):
            room = 1e-9 + float((moved[key] - theirs[key]).detach().abs().max())
            assert float((ours[key] - theirs[key]).detach().abs().max()) < room, (case, key)
        assert float((anew["energy"] - theirs["energy"]).detach().abs().max()) > 2e-9, case


def test_stress_with_rounded_constants():
    model = accelerate(polar_model(dtype=torch.float32, hidden_irreps="8x0e + 8x1o").double())
    assert_stress(model)


def test_slabs_are_told_what_their_energies_depend_on():
    """Once for a model and each kind."""
    fast = accelerate(copy.deepcopy(shared_polar_model()))
    for pbc, charge, cause in (
        (
            SLAB,
            1.0,
            "has no terms for the charge of a slab, so its energy depends, by many eV, on the",
        ),
        (SLAB, 0.0, "are not measured from the vacuum, so the energy of a slab with a dipole depends"),
        ((T, F, T), 0.0, "knows slabs along z only and sums this system as a crystal"),
    ):
        (atoms,) = random_frames([pbc], n_atoms=4, box=3.5)
        atoms.info["charge"] = charge
        batch = batch_of([atoms], fast)
        with pytest.warns(UserWarning, match=rf"PolarMACE, system 0 with pbc=.*{cause}"):
            outputs(fast, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outputs(fast, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs(accelerate(shared_polar_model()), batch_of(random_frames([PERIODIC, MOLECULE]), fast))


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_irreps": "16x0e", "num_interactions": 1},
        {"hidden_irreps": "8x0e + 8x1o + 8x2e", "num_interactions": 3},
        {"atomic_multipoles_smearing_width": 1.0, "field_feature_widths": [0.8, 1.2, 2.0]},
        {"field_si": True, "include_electrostatic_self_interaction": False},
        {"add_local_electron_energy": False, "field_feature_norms": None},
    ],
    ids=["scalars", "l2", "widths", "self", "no_electron_energy"],
)
def test_equals_the_original_for_other_shapes(options):
    if options.get("field_feature_norms", 0) is None:
        options = {**options, "field_feature_norms": [1.0] * 4}
    model = shared_polar_model(**options)
    compare(model, batch_of(random_frames([PERIODIC, PERIODIC]), model), 1e-9)


def test_use_pbc_evaluator():
    model = shared_polar_model()
    batch = batch_of(random_frames([MOLECULE], n_atoms=4, box=3.5), model)
    compare(model, batch, 1e-9, use_pbc_evaluator=True)


@pytest.mark.parametrize("systems", ["periodic", "slab"])
def test_float32_equals_the_original(systems):
    """To 1e-5, or as near to float64 as the original comes: in tall slabs it loses 1e-5 itself."""
    frames = frames_of(systems)
    model = shared_polar_model()
    exact = outputs(model, batch_of(frames, model))
    single = copy.deepcopy(model).float()
    torch.set_default_dtype(torch.float32)
    batch = batch_of(frames, single, torch.float32)
    theirs, ours = outputs(single, batch), outputs(accelerate(single), batch)
    for key, want in theirs.items():
        if want is None or key in WRONG_THERE:
            continue
        assert ours[key].dtype == want.dtype, key
        truth = exact[key].detach()
        scale = float(truth.abs().max())
        lost = float((want.detach().double() - truth).abs().max())
        lost /= max(scale, 1e-300)
        assert_close(ours[key], want, max(1e-5, 2 * lost))
        # and itself no further from float64 than twice the original, but for a rounding of the table's size
        assert_close(ours[key], truth, 2 * lost + RELATIVE[torch.float32])


def test_training_gradients_equal_the_original():
    model = shared_polar_model(hidden_irreps="8x0e + 8x1o")
    batch = batch_of(random_frames([PERIODIC, PERIODIC], n_atoms=5), model)
    gradients = []
    for m in (model, accelerate(model)):
        out = outputs(m, batch, training=True)
        loss = (out["energy"] ** 2).sum() + (out["forces"] ** 2).sum() + (out["dipole"] ** 2).sum()
        gradients.append(
            torch.autograd.grad(loss, [p for p in m.parameters() if p.requires_grad], allow_unused=True)
        )
    for want, got in zip(*gradients, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            assert_close(got, want, 1e-8)


def test_hessian_equals_the_original():
    model = shared_polar_model(hidden_irreps="8x0e", num_interactions=1)
    batch = batch_of(random_frames([PERIODIC], n_atoms=3), model)
    compare(model, batch, 1e-8, compute_hessian=True, training=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_irreps": "512x0e", "num_interactions": 1},
        {
            "hidden_irreps": "512x0e + 512x1o",
            "num_interactions": 2,
            "edge_irreps": "128x0e + 128x1o",
        },
        {
            "hidden_irreps": "512x0e + 512x1o + 512x2e",
            "num_interactions": 3,
            "edge_irreps": "128x0e + 128x1o + 128x2e",
        },
    ],
    ids=["S", "M", "L"],
)
def test_released_architectures(shape):
    model = polar_model(
        elements=tuple(range(1, 84)), r_max=6.0, max_ell=3, correlation=3, **shape
    ).requires_grad_(False)
    for pbc in ([MOLECULE], [PERIODIC]):
        compare(model, batch_of(random_frames(pbc, n_atoms=6), model), 1e-9)


def test_stress_of_a_crystal_is_right_to_finite_differences():
    assert_stress(accelerate(shared_polar_model()))


def assert_stress(model):
    (atoms,) = random_frames([PERIODIC])
    atoms.info["external_field"] = np.zeros(3)
    stress = model(batch_of([atoms], model), compute_stress=True)["stress"][0]
    step = 1e-5
    want = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[i, j] += sign * step / 2
                strain[j, i] += sign * step / 2
                strained = atoms.copy()
                strained.set_cell(np.asarray(atoms.cell) @ strain, scale_atoms=True)
                energies.append(model(batch_of([strained], model))["energy"].item())
            want[i, j] = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    # wave vectors cross the model's own cutoff as the cell strains: 1e-7 is what that leaves
    assert_close(stress.detach(), torch.tensor(want), 1e-6)


def test_shares_parameters_and_keeps_the_state_dict():
    model = shared_polar_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = accelerate(model)
    assert isinstance(fast, type(model))
    assert list(fast.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in fast.state_dict().items())
    assert {id(p) for p in fast.parameters()} == {id(p) for p in model.parameters()}
    assert type(model).__module__.startswith("mace.")
    assert all("scfmlip" not in type(m).__module__ for m in model.modules())
    fast.load_state_dict(before)


def test_restore_gives_the_original_classes_back():
    model = shared_polar_model()
    fast = accelerate(model)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    batch = batch_of(random_frames([PERIODIC]), model)
    want = outputs(model, batch)["energy"]
    names = [type(m).__name__ for m in model.modules()]
    for copied in (fast, copy.deepcopy(fast), torch.load(file, weights_only=False)):
        assert_close(outputs(copied, batch)["energy"].detach(), want.detach(), 1e-9)
        back = restore(copied)
        assert [type(m).__name__ for m in back.modules()] == names
        assert_close(outputs(back, batch)["energy"].detach(), want.detach(), 1e-12)
    assert restore(model) is model
    assert accelerate(fast) is fast


def test_mace_torchs_tools_see_the_original():
    """A conversion builds the next model of the class and the configuration that it finds: accelerated."""
    from mace.tools.scripts_utils import extract_model

    model = shared_polar_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = extract_model(accelerate(model))
        plain = extract_model(model)
    assert [type(m).__qualname__ for m in built.modules()] == [
        type(m).__qualname__ for m in accelerate(model).modules()
    ]
    assert not is_accelerated(plain)
    assert f"accelerated by scfmlip: {sum(isinstance(m, Swapped) for m in built.modules())} modules" in str(
        built
    )
    batch = batch_of(random_frames([PERIODIC]), model)
    want, got = outputs(model, batch)["energy"], outputs(built, batch)["energy"]
    assert_close(got.detach(), want.detach(), 1e-10)


@pytest.mark.parametrize("first", ["lora", "accelerate"])
def test_lora(first):
    """mace-torch's low-rank layers around the linear ones of the field blocks too, which then say so."""
    model = shared_polar_model()

    def told():
        return pytest.warns(UserWarning, match="LoRAO3Linear")

    adapted, fast = with_lora(model, first, 0.1, told)
    batch = batch_of(random_frames([PERIODIC]), model)
    want = outputs(adapted, batch)
    with told() if first == "accelerate" else contextlib.nullcontext():
        got = outputs(fast, batch)
    for key in ("energy", "forces", "charges"):
        assert_close(got[key].detach(), want[key].detach(), 1e-8)


def test_follows_the_models_dtype():
    model = shared_polar_model()
    fast = accelerate(copy.deepcopy(model))
    batch = batch_of(random_frames([PERIODIC]), model)
    want = outputs(fast, batch)["energy"]
    single = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    torch.set_default_dtype(torch.float32)
    got = outputs(fast.float(), single)["energy"]
    assert got.dtype == torch.float32
    assert_close(got.detach(), want.detach(), 1e-5)


def test_refusals(monkeypatch):
    with pytest.raises(TypeError, match="takes a mace-torch model"):
        accelerate(torch.nn.Linear(2, 2))
    model = shared_polar_model()
    with pytest.raises(NotImplementedError, match="ML-IAP"):
        accelerate(model)({}, lammps_mliap=True)
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        assert accelerate(model, electrostatics=False, tensor_products=False) is model
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    with pytest.raises(RuntimeError, match=r"supports PolarMACE of mace-torch .* 9\.9"):
        accelerate(model)


def test_nan_positions_are_named():
    model = accelerate(shared_polar_model())
    batch = batch_of(random_frames([PERIODIC]), model)
    batch["positions"] = batch["positions"].clone()
    batch["positions"][3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"positions holds NaN or infinity in 1 row.*row 3"):
        model(batch)


def test_what_stays_is_named():
    """Field blocks of other classes, and of a model that is somebody's own."""
    model = copy.deepcopy(shared_polar_model())
    block = model.field_dependent_charges_maps[0]
    block.potential_embedding.__class__ = type("OwnEmbedding", (type(block.potential_embedding),), {})
    model.layer_feature_mixer.__class__ = type("OwnMixer", (type(model.layer_feature_mixer),), {})
    with pytest.warns(UserWarning, match="accelerate leaves 2 modules of this PolarMACE") as told:
        fast = accelerate(model)
    assert len(told) == 1
    for line in (
        "charges_maps.0 (AgnosticEmbeddedOneBodyVariableUpdate): its potential_embedding is a OwnEmbedding",
        "layer_feature_mixer (OwnMixer): not a known field block of mace-torch",
    ):
        assert line in str(told[0].message)
        assert line in str(fast)
    batch = batch_of(random_frames([PERIODIC]), model)
    want, got = outputs(model, batch), outputs(fast, batch)
    for key in ("energy", "forces", "charges"):
        assert_close(got[key].detach(), want[key].detach(), 1e-9)
    model.__class__ = type("OwnPolarMACE", (type(model),), {})
    with pytest.warns(
        UserWarning, match=r"the model itself \(OwnPolarMACE\): a subclass of PolarMACE with its own"
    ):
        accelerate(model)


def test_electrostatics_or_backbone_alone_and_both_later():
    model = shared_polar_model()
    batch = batch_of(random_frames([PERIODIC]), model)
    want = outputs(model, batch)["energy"].detach()
    both = [type(m).__qualname__ for m in accelerate(model).modules()]
    for options in ({"electrostatics": False}, {"tensor_products": False}):
        half = accelerate(model, **options)
        assert is_accelerated(half)
        assert [type(m).__qualname__ for m in half.modules()] != both
        assert_close(outputs(half, batch)["energy"].detach(), want, 1e-9)
        assert [type(m).__qualname__ for m in accelerate(half).modules()] == both
        assert_close(outputs(accelerate(half), batch)["energy"].detach(), want, 1e-9)
        assert not is_accelerated(restore(half))


def test_compiled_it_stays_itself():
    """As the original it cannot be compiled; unlike it, it says so, and runs beside what can."""
    fast = accelerate(shared_polar_model())
    batch = batch_of(random_frames([PERIODIC], n_atoms=4), fast)
    want = outputs(fast, batch)
    torch._dynamo.reset()
    got = outputs(torch.compile(fast, backend="eager"), batch)
    for key in ("energy", "forces"):
        assert torch.equal(got[key], want[key])
    torch._dynamo.reset()
    with pytest.raises(Exception, match="accelerated PolarMACE runs in eager mode only"):
        outputs(torch.compile(fast, backend="eager", fullgraph=True), batch)
