# Train a model with charges on a file of frames: look at it, train, stop, go on, evaluate, draw.
# bash -e train_on_my_data.sh, in an empty folder

# %% data
# stands for your DFT: a shipped interface, shaken, with labels from a shipped model
cat > make_frames.py <<'END'
from ase.io import read, write

import scfmlip
from scfmlip.data import path

still = read(path("al_water.xyz"), 0)
del still.arrays["REF_mulliken"]
calc = scfmlip.ase.Calculator(path("models/al_water-equilibrated.safetensors"), charge=0)
frames = []
for seed in range(15):
    atoms = still.copy()
    atoms.info, atoms.calc = {"charge": 0}, calc
    atoms.rattle(0.05, seed=seed)
    atoms.info["REF_energy"] = atoms.get_potential_energy()
    atoms.arrays["REF_forces"] = atoms.get_forces()
    atoms.arrays["REF_hirshfeld"] = atoms.get_charges()
    atoms.calc = None
    frames.append(atoms)
write("frames.xyz", frames[:12])
write("unseen.xyz", frames[12:])
END
python make_frames.py 2> /dev/null
head -2 frames.xyz | cut -c 1-240

# %% init
scfmlip init frames.xyz -o train.yaml --epochs 6

# %% edit
# a network small enough for a tutorial
sed -i 's/64x0e+64x1o/8x0e+8x1o/; s/max_ell: 3/max_ell: 2/; s/correlation: 3/correlation: 2/' train.yaml
sed -i 's/r_max: 5.0/r_max: 4.0/; s/warmup_steps: 20/warmup_steps: 2/' train.yaml
sed -n '/^data:/,$p' train.yaml

# %% check
scfmlip train train.yaml --check

# %% train
scfmlip train train.yaml --device cpu
ls training
cut -d, -f1-5 training/log.csv

# %% resume
# one more stage, with a smaller learning rate: the same command goes on after the last epoch
sed -i '/lr: 0.001,/{p;s/lr: 0.001/lr: 0.0003/}' train.yaml
grep -A5 stages: train.yaml
scfmlip train train.yaml --device cpu
cut -d, -f1-5 training/log.csv | tail -n 2

# %% info
scfmlip info training/best.safetensors
scfmlip info training/checkpoint.pt | head -n 2

# %% evaluate
scfmlip evaluate unseen.xyz --model training/best.safetensors -o out.xyz --parity parity.png

# %% plot
scfmlip plot out.xyz --charges scfmlip_charges --dipoles scfmlip_atomic_dipoles --sigma 1.5 -o potential.png
