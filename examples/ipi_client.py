"""Two beads of quantum water with i-PI, its server included: python examples/ipi_client.py [steps]"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from scfmlip.ase import Calculator
from scfmlip.data import path
from scfmlip.interfaces.ipi import run_client

steps, port = int(sys.argv[1]) if len(sys.argv) > 1 else 10, 31416
INPUT = f"""
<simulation verbosity="low">
  <output prefix="water">
    <properties stride="1" filename="out">
      [step, potential{{electronvolt}}, temperature{{kelvin}}]
    </properties>
    <trajectory stride="1" filename="dipole" extra_type="dipole"> extras </trajectory>
  </output>
  <total_steps>{steps}</total_steps>
  <ffsocket mode="inet" name="scfmlip" pbc="False">
    <address>localhost</address> <port>{port}</port> <latency>0.001</latency>
  </ffsocket>
  <system>
    <initialize nbeads="2">
      <file mode="ase" units="angstrom">water.xyz</file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces> <force forcefield="scfmlip"/> </forces>
    <ensemble> <temperature units="kelvin"> 300 </temperature> </ensemble>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <timestep units="femtosecond"> 0.25 </timestep>
        <thermostat mode="pile_g"> <tau units="femtosecond"> 25 </tau> </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""
atoms = Atoms("OH2", [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], cell=[30, 30, 30], info={"charge": 0})
# two beads take turns: what was found for one is a start for the other, but no polynomial goes through them
calc = Calculator(path("models/al_water-fixed_point.safetensors"), dtype="float64", extrapolation=0)
with tempfile.TemporaryDirectory() as folder:
    write(Path(folder) / "water.xyz", atoms, format="extxyz")
    (Path(folder) / "input.xml").write_text(INPUT)
    program = Path(sys.executable).with_name("i-pi")
    with open(Path(folder) / "log", "w") as log:
        server = subprocess.Popen([program, "input.xml"], cwd=folder, stdout=log, stderr=log)
        try:
            while server.poll() is None:
                try:
                    count = run_client(calc, atoms, port=port, timeout=60)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.2)
            status = server.wait(60)
        finally:
            server.kill()
            server.wait()
    if status:
        sys.exit((Path(folder) / "log").read_text())
    table = np.loadtxt(Path(folder) / "water.out", ndmin=2)
print(f"{count} geometries in {steps} steps; potential energy {table[-1, 1]:.4f} eV, {table[-1, 2]:.0f} K")
