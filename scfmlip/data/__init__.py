"""Structures shipped with the package; see README.md beside this file."""

from importlib import resources
from pathlib import Path


def path(name: str) -> Path:
    """
    Where a shipped file lies.

    Args:
        name: "al_water.xyz" or "sio2_vacancy.xyz".

    Raises:
        FileNotFoundError: for another name; lists those that exist.
    """
    folder = Path(str(resources.files("scfmlip.data")))
    found = folder / name
    if not found.is_file():
        known = sorted(p.name for p in folder.glob("*.xyz"))
        raise FileNotFoundError(f"scfmlip ships no {name!r}; it has {known}")
    return found
