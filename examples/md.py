"""Water on aluminium at constant potential, by `scfmlip.md`: python examples/md.py [steps]"""

import sys

from scfmlip.data import path
from scfmlip.md import config_from_dict, run_md

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
config = config_from_dict(
    {
        "structure": str(path("al_water.xyz")),
        "model": str(path("models/al_water-fixed_point.safetensors")),
        "output": "md_constant_potential",
        "steps": steps,
        "ensemble": "langevin",
        "temperature": 300,
        # what balances the slab's charge lies above the water
        "counter_charge": [17.0, 19.0],
        "fixed_atoms": [0, 1, 2, 3, 4, 5],
        # up by half a volt while the run lasts
        "fermi_level": {"times": [0, 0.5 * steps], "values": [-1.0, -0.5]},
        "trajectory_interval": 5,
    }
)
summary = run_md(config)
print(f"mean charge {summary['charge']:+.3f} e at {summary['temperature']:.0f} K")
print("md_constant_potential holds trajectory.xyz, log.csv and md.png; run it again with more steps to go on")
