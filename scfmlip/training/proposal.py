"""A training file for given frames: which keys, which charge rule and why, as YAML with comments."""

from __future__ import annotations

from collections.abc import Sequence

from ..version import __version__
from .frames import PROPERTIES
from .survey import Survey

# elements that make metals; where their charges are small, they start soft
_METALS = (
    "Li Be Na Mg Al K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Cs Ba La "
    "Ce Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi"
)
_METALLIC = 0.3  # e, mean of the absolute charge
SOFT, STIFF = 10.0, 200.0  # V/e, as in the study of the rules
# eV, eV/angstrom, ...: weights of the study and of the shipped models
_WEIGHTS = {
    "energy": 100.0, "forces": 1.0, "stress": 100.0, "charges": 1000.0, "dipole": 1.0, "potential": 1.0,
    "fermi_level": 1.0,
}  # fmt: skip
_UNITS = {
    "energy": "eV", "forces": "eV/angstrom", "stress": "eV/angstrom^3",
    "charges": "e", "dipole": "e angstrom",
    "density_coefficients": "e, e angstrom", "potential": "V", "fermi_level": "V",
}  # fmt: skip


def propose_rule(found: Survey) -> tuple[str, list[str]]:
    """
    A charge rule for the data, and why.

    Returns:
        Name of the rule, and sentences.
    """
    labels = found.labels
    answers = [
        (len(found.total_charges) > 1, "the frames have several total charges"),
        (found.kinds["slab"] > 0, "there are slabs"),
        (found.fields > 0, "there are external fields"),
        (found.external > 0, "there are charges outside the model"),
        ("fermi_level" in labels, "there are Fermi levels"),
    ]
    reasons = [text for holds, text in answers if holds]
    if "charges" not in labels and "dipole" not in labels:
        if len(found.total_charges) > 1:
            return "equilibrated", [
                "the frames have several total charges, and no charges of atoms to learn from: they follow "
                "from energies and forces",
            ]
        return "latent", [
            "there are no charges to learn from: these are found from energies and forces alone",
            "short_range is the same model without charges; with labels of charges others become possible",
        ]
    if reasons:
        return "equilibrated", [
            f"{', '.join(reasons)}: charge must answer to what is far away",
            "fixed_point (response: passive, or mlp) answers too; local is cheaper and does not",
        ]
    return "local", [
        "all frames have one total charge and no field: charges that follow from the surroundings may do",
        "they do not answer to what lies beyond the cutoff: equilibrated does, at more cost",
    ]


def hardness_of(found: Survey) -> dict[str, float]:
    """
    Hardness of each element to start from, V/e: where no charge should pass between atoms, stiff.

    Metals whose atoms are nearly neutral in the data start soft, everything else stiff.
    """
    return {
        symbol: SOFT if symbol in _METALS.split() and found.charge_of.get(symbol, 0.0) < _METALLIC else STIFF
        for symbol in found.elements
    }


def propose(found: Survey, files: Sequence[str], rule: str | None = None, epochs: int = 180) -> str:
    """
    The text of a training file.

    Args:
        found: What the frames hold.
        files: Names of the files.
        rule: Name of the charge rule, instead of the proposed one.
        epochs: Of all stages.

    Raises:
        ValueError: if there is neither an energy nor a force to train on.
    """
    if not {"energy", "forces"} & set(found.labels):
        raise ValueError(
            "no frame holds an energy or forces under a name that looks like it (REF_energy, energy, "
            "REF_forces, forces, ...): rename them, or write the file by hand"
        )
    lines = [
        f"# a training on {', '.join(files)}, written by scfmlip {__version__}: a start, to be edited",
        "# scfmlip train FILE --check reads data and options, scfmlip train FILE trains",
        "",
        "output: training  # folder of everything that is written; the same command there goes on",
        "",
        *_data_lines(found, files),
        "",
        *_model_lines(found, rule),
        "",
        *_stage_lines(found, rule or propose_rule(found)[0], epochs),
    ]
    return "\n".join(lines) + "\n"


def _data_lines(found: Survey, files: Sequence[str]) -> list[str]:
    """The section `data`."""
    low, high = found.atoms
    kinds = ", ".join(f"{n} {kind}{'s' if n != 1 else ''}" for kind, n in found.kinds.items())
    part = 0.1 if found.frames >= 20 else 0.2
    lines = [
        "data:",
        f"  train: [{', '.join(map(_quoted, files))}]  # {found.frames} of {low} to {high} atoms: {kinds}",
        "  # valid: [valid.xyz]  # frames of their own, instead of a part of the training frames",
        f"  valid_fraction: {part}",
    ]
    for name, label in found.labels.items():
        option = PROPERTIES[name][0]
        text = f"  {option}: {_quoted(label.key)}  # {_UNITS[name]}; {label.count} frames, "
        text += f"{label.low:.6g} to {label.high:.6g}"
        if label.others:
            text += f"; {', '.join(label.others)} would be another choice"
        lines.append(text)
    if found.total_charges:
        lines.append(f"  # total charges (e) of frames: {_counted(found.total_charges)}")
    for key in found.similar.get("total_charge", []):
        lines.append(
            f"  # total_charge_key: {_quoted(key)}  # if that is the total charge: it is not read now"
        )
    if found.spins:
        lines.append(
            f"  # multiplicities (2S+1) of frames: {_counted(found.spins)}; only recursion answers to them"
        )
    if found.fields:
        lines.append(f"  field_convention: mace  # or physical: {found.fields} frames have an external field")
    if "charges" in found.labels and found.charge_gap > 0.05:
        lines.append(
            f"  # beware: {found.labels['charges'].key} misses the total charge by {found.charge_gap:.2g} e"
        )
    return lines


def _model_lines(found: Survey, rule: str | None) -> list[str]:
    """The section `model`."""
    proposed, why = propose_rule(found)
    name, heads = rule or proposed, sorted(found.heads)
    lines = ["model:"]
    if set(found.elements) <= set(found.isolated):
        lines.append("  atomic_energies: isolated  # of the frames with config_type=IsolatedAtom; or average")
    else:
        lines.append(
            "  atomic_energies: average  # least squares; isolated: of frames with config_type=IsolatedAtom"
        )
    if found.lone:
        single = ", ".join(sorted(set(found.lone)))
        lines.append(
            f"  # single atoms of {single} count as any frame: config_type=IsolatedAtom makes them references"
        )
    lines += [f"  # rule {proposed}: {why[0]}", *(f"  # {text}" for text in why[1:])]
    if rule is not None and rule != proposed:
        lines.append(f"  # rule {rule} was asked for")
    charged = name not in ("short_range", "latent")
    if name in ("equilibrated", "functional"):
        hardness = ", ".join(f"{symbol}: {value:g}" for symbol, value in hardness_of(found).items())
        lines += ["  rule:", f"    name: {name}", "    source: charge"]
        lines.append(
            f"    hardness: {{{hardness}}}  # V/e to start from: {SOFT:g} where charge passes, as in a metal"
        )
        lines += ["    local_hardness: true"] if name == "equilibrated" else []
    elif name == "fixed_point":
        scale = ", ".join(f"{symbol}: {1 / value:g}" for symbol, value in hardness_of(found).items())
        lines += ["  rule:", "    name: fixed_point", "    response: passive", "    energy: variational"]
        lines.append(f"    response_scale: {{{scale}}}  # e/V to start from: the inverse of a hardness")
    elif name in ("fixed", "local_split"):
        lines += [
            "  rule:",
            f"    name: {name}",
            f"    charges: {_formal(found)}  # formal charges (e): fill them in",
        ]
    else:
        lines.append(f"  rule: {name}")
    if charged:
        constraint = "charge_spin" if name == "recursion" else "charge"
        lines.append(
            f"  constraint: {constraint}  # the charges add up to each frame's total; 0 where it has none"
        )
    if name != "short_range":
        level = 0 if name == "fixed" else 1
        lines.append(
            f"  density: {{l_max: {level}, sigma: 1.5, tolerance: 1.0e-4}}  # dipoles too; width in angstrom"
        )
    lines += [
        "  backbone:",
        "    r_max: 5.0  # angstrom",
        "    num_interactions: 2",
        "    hidden_irreps: 64x0e+64x1o",
        "    max_ell: 3",
        "    correlation: 3",
    ]
    if heads:
        lines.append(f"    heads: [{', '.join(map(_quoted, heads))}]")
    lines.append("  dtype: float32")
    return lines


def _stage_lines(found: Survey, rule: str, epochs: int) -> list[str]:
    """Stages, schedule and the rest."""
    known = [name for name in _WEIGHTS if name in found.labels and _counts(found, name)]
    if rule == "short_range":
        known = [name for name in known if name in ("energy", "forces", "stress")]
    elif rule in ("latent", "fixed"):
        known = [name for name in known if name in ("energy", "forces", "stress", "dipole")]
        known = [name for name in known if name != "dipole" or rule == "fixed"]
    elif rule not in ("equilibrated", "functional", "fixed_point"):
        known = [name for name in known if name != "fermi_level"]
    loss = ", ".join(f"{name}: {_WEIGHTS[name]:g}" for name in known)
    lines = ["stages:"]
    rest = epochs
    if "charges" in known and epochs > 2:
        first = max(1, epochs // 6)
        rest -= first
        lines.append(
            f"  - {{epochs: {first}, lr: 0.01, loss: {{charges: {_WEIGHTS['charges']:g}}}}}  # charges first"
        )
    last = rest // 3
    lines.append(f"  - {{epochs: {rest - last}, lr: 0.01, loss: {{{loss}}}}}")
    if last:
        lines.append(f"  - {{epochs: {last}, lr: 0.001, loss: {{{loss}}}}}")
    return [
        "# weights of squared errors; the table of losses in the documentation has their units",
        *lines,
        "schedule: {name: cosine, warmup_steps: 20}",
        "batch_size: 4",
        "ema_decay: 0.98",
        "seed: 1",
    ]


def _counts(found: Survey, name: str) -> bool:
    """Whether a label means something for these frames: stress of crystals, dipoles of anything else."""
    crystals = found.kinds["crystal"]
    return {"stress": crystals > 0, "dipole": crystals < found.frames}.get(name, True)


def _formal(found: Survey) -> str:
    return "{" + ", ".join(f"{symbol}: 0.0" for symbol in found.elements) + "}"


def _counted(values: dict) -> str:
    return ", ".join(f"{value:g} ({count})" for value, count in sorted(values.items()))


def _quoted(text: str) -> str:
    """A text that YAML reads as itself."""
    plain = text.replace("_", "").replace("-", "").replace("/", "").replace(".", "")
    return text if plain.isalnum() and not text[0].isdigit() and text.lower() not in _WORDS else f'"{text}"'


_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
