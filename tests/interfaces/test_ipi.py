"""i-PI: a real server, and a client of ours."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("ase", reason="needs ASE")

from ase import units
from ase.calculators.socketio import SocketServer
from ase.io import write
from ase.md.verlet import VelocityVerlet
from models.cases import crystal, make_model, water

from scfmlip.ase import Calculator
from scfmlip.interfaces.ipi import run_client

SERVER = shutil.which("i-pi") or shutil.which("i-pi", path=str(Path(sys.executable).parent))
INPUT = """
<simulation verbosity="quiet" safe_stride="1000">
  <output prefix="out">
    <properties stride="1" filename="properties">
      [step, potential{{electronvolt}}, kinetic_md{{electronvolt}}]
    </properties>
    <trajectory stride="1" filename="dipole" extra_type="dipole"> extras </trajectory>
  </output>
  <total_steps>4</total_steps>
  <ffsocket mode="inet" name="driver" pbc="False">
    <address>localhost</address> <port>{port}</port> <latency>0.001</latency>
  </ffsocket>
  <system>
    <initialize nbeads="1">
      <file mode="ase" units="angstrom">start.xyz</file>
    </initialize>
    <forces> <force forcefield="driver"/> </forces>
    <ensemble> <temperature units="kelvin"> 300 </temperature> </ensemble>
    <motion mode="dynamics">
      <dynamics mode="nve"> <timestep units="femtosecond"> 0.5 </timestep> </dynamics>
    </motion>
  </system>
</simulation>
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.skipif(SERVER is None, reason="needs i-PI")
def test_a_real_server(tmp_path):
    """Four steps of NVE as ASE's velocity Verlet, and the dipole among i-PI's extras."""
    atoms, port = water(), free_port()
    atoms.set_cell(np.eye(3) * 30.0)
    atoms.pbc = True
    write(tmp_path / "start.xyz", atoms, format="extxyz")
    (tmp_path / "input.xml").write_text(INPUT.format(port=port))
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([SERVER, "input.xml"], cwd=tmp_path, stdout=log, stderr=log)
    driven = atoms.copy()
    driven.pbc = False
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
            try:
                count = run_client(Calculator(make_model("qeq")), driven, port=port, timeout=60)
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        assert server.wait(60) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        server.kill()
    assert count >= 5
    table = np.loadtxt(tmp_path / "out.properties")
    reference = driven.copy()
    reference.calc = Calculator(make_model("qeq"))
    reference.set_momenta(np.zeros((3, 3)))
    dynamics, energies = VelocityVerlet(reference, 0.5 * units.fs), [reference.get_potential_energy()]
    dipole = reference.get_dipole_moment()
    for _ in range(4):
        dynamics.run(1)
        energies.append(reference.get_potential_energy())
    # i-PI's constants are of another year's table
    np.testing.assert_allclose(table[:, 1], energies, rtol=1e-6)
    moved = np.abs(np.diff(energies))
    np.testing.assert_allclose(np.diff(table[:, 1]), np.diff(energies), atol=1e-4 * moved.max() + 1e-8)
    lines = [line for line in (tmp_path / "out.dipole_0").read_text().splitlines() if "#" not in line]
    first = np.array([float(word) for word in lines[0].replace("[", " ").replace("]", " ").split()])
    np.testing.assert_allclose(first, dipole, atol=1e-6)


def test_virial_and_extras():
    """What a server is told of a crystal: ASE's server is as good as another."""
    atoms, port = crystal(), free_port()
    model, got = make_model("qeq"), {}
    client = threading.Thread(
        target=lambda: run_client(Calculator(model), atoms, host="127.0.0.1", port=port, timeout=60)
    )
    with SocketServer(port=port, timeout=60) as server:
        client.start()
        got = server.calculate(atoms)
        server.protocol.end()
    client.join()
    reference = atoms.copy()
    reference.calc = Calculator(model)
    np.testing.assert_allclose(got["forces"], reference.get_forces(), atol=1e-9)
    virial = -reference.get_volume() * reference.get_stress(voigt=False)
    np.testing.assert_allclose(got["virial"], virial, atol=1e-8)
    extras = json.loads(bytes(got["morebytes"]).decode())
    np.testing.assert_allclose(extras["charges"], reference.get_charges(), atol=1e-9)
    assert set(extras) >= {"dipole", "charges", "fermi_level"}


def test_nobody_listens():
    with pytest.raises(OSError, match=r"no i-PI server listens at localhost:\d+: start i-pi first"):
        run_client(Calculator(make_model("short_range")), water(), port=free_port())
    with pytest.raises(OSError, match="no i-PI server listens at the Unix socket nobody"):
        run_client(Calculator(make_model("short_range")), water(), unixsocket="nobody")
