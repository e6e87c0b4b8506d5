# Molecular dynamics of a model with charges, by the command line: options, run, go on, look, draw.
# bash -e dynamics.sh, in an empty folder

# %% start
# stands for your structure and your model: start.xyz, and training/best.safetensors of tutorial 2
cat > start.py <<'PYTHON'
from shutil import copy

from ase.io import read, write

from scfmlip.data import path

atoms = read(path("al_water.xyz"), 0)
print(atoms.info["total_charge"], "e,", len(atoms), "atoms, periodic along", atoms.pbc)
atoms.calc = None
write("start.xyz", atoms)
copy(path("models/al_water-equilibrated.safetensors"), "model.safetensors")
PYTHON
python start.py

# %% options
cat > md.yaml <<'YAML'
structure: start.xyz          # total charge, spin, field: from its info
model: model.safetensors
steps: 60
timestep: 0.5                 # fs
ensemble: langevin            # or nve, baoab, bussi, nose_hoover, npt
temperature: 300              # K
thermostat_time: 20           # fs
fixed_atoms: [0, 1, 2, 3, 4, 5]
trajectory_interval: 20
output: md
YAML
scfmlip md md.yaml --check

# %% run
scfmlip md md.yaml --device cpu
ls md

# %% go_on
# the same command with more steps; after a kill, the same command as it was
scfmlip md md.yaml --device cpu --steps 80
head -n 1 md/log.csv
tail -n 2 md/log.csv

# %% analyse
# frames hold what the model was told, and what it found
cat > analyse.py <<'PYTHON'
from ase.io import read

for atoms in read("md/trajectory.xyz", ":"):
    charges = atoms.get_charges()
    step, kelvin = atoms.info["md_step"], atoms.get_temperature()
    print(f"step {step}: {kelvin:.0f} K, charges {charges.min():+.3f} to {charges.max():+.3f} e")
PYTHON
python analyse.py

# %% plot
# charges and dipoles as Gaussians of the model's width: scfmlip info says which
scfmlip plot md/trajectory.xyz --index -1 --charges charges --dipoles scfmlip_atomic_dipoles \
  --sigma 1.5 -o potential.png --data potential.csv
head -n 3 potential.csv
