"""Structures shipped with the package; see README.md in this folder."""

from importlib import resources
from pathlib import Path

_KINDS = (".xyz", ".safetensors")


def path(name: str) -> Path:
    """
    Path of a shipped file.

    Args:
        name: "al_water.xyz", "sio2_vacancy.xyz", or "models/..." for a trained model.

    Raises:
        FileNotFoundError: for an unknown name; lists the known ones.

    Example:
        >>> from scfmlip.data import path
        >>> path("al_water.xyz").name
        'al_water.xyz'
    """
    folder = Path(str(resources.files("scfmlip.data")))
    found = folder / name
    if not found.is_file():
        known = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.suffix in _KINDS)
        raise FileNotFoundError(f"scfmlip ships no {name!r}; it has {known}")
    return found
