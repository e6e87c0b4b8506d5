"""
i-PI: a model as a client of its server, over a socket.

Through ASE's client, which speaks i-PI's protocol; nothing of i-PI is needed on this side. Beside energy,
forces and virial the server gets dipole, charges and more as JSON ("extras"), which
``<trajectory extra_type="dipole">extras</trajectory>`` writes.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.socketio import IPIProtocol, SocketClient, actualunixsocketname
from ase.parallel import world

from .ase import Calculator

EXTRAS = ("dipole", "charges", "fermi_level", "scf_iterations")


class _Protocol(IPIProtocol):
    """ASE's protocol, with extras behind the forces."""

    def __init__(self, connection: socket.socket, calc: Calculator, extras: Sequence[str]) -> None:
        super().__init__(connection)
        self._calc, self._extras = calc, extras

    def sendforce(self, energy: Any, forces: Any, virial: Any, morebytes: Any = None) -> None:
        """Send one result."""
        results = self._calc.results
        found = {name: np.asarray(results[name]).tolist() for name in self._extras if name in results}
        text = json.dumps(found).encode("ascii") if found else b"\0"
        super().sendforce(energy, forces, virial, np.frombuffer(text, dtype=np.byte))


class _Client(SocketClient):
    """ASE's client on a socket that is connected."""

    def __init__(self, connection: socket.socket, calc: Calculator, extras: Sequence[str]) -> None:
        self.comm, self.closed, self.state = world, False, "READY"
        self.protocol = _Protocol(connection, calc, extras)
        self.log = self.protocol.log
        self.bead_index, self.bead_initbytes = 0, b""


def _connect(unixsocket: str | None, host: str, port: int, timeout: float | None) -> socket.socket:
    """A socket to the server, or an error that says where none was."""
    family = socket.AF_INET if unixsocket is None else socket.AF_UNIX
    where = f"{host}:{port}" if unixsocket is None else f"the Unix socket {unixsocket}"
    connection = socket.socket(family)
    connection.settimeout(timeout)
    try:
        connection.connect((host, port) if unixsocket is None else actualunixsocketname(unixsocket))
    except OSError as error:
        connection.close()
        text = f"no i-PI server listens at {where}: start i-pi first, and see the address of its ffsocket"
        raise type(error)(error.errno, text) from error
    return connection


def run_client(
    calc: Calculator,
    atoms: Atoms,
    *,
    unixsocket: str | None = None,
    host: str = "localhost",
    port: int = 31415,
    extras: Sequence[str] = EXTRAS,
    timeout: float | None = None,
) -> int:
    """
    Evaluate what an i-PI server asks for, until it ends.

    Args:
        calc: `scfmlip.ase.Calculator`. A client that serves several beads sees them in turn: a polynomial
            through the last densities means nothing then, give it ``extrapolation=0``.
        atoms: Elements in the server's order, ``pbc``, and ``info`` as for the calculator (charge, spin,
            external field, ...); positions and cell are the server's.
        unixsocket: Name of the server's Unix socket, its ``<address>`` with ``mode="unix"``.
        host: Of an internet socket, where there is no Unix socket.
        port: Of that.
        extras: Names of the calculator's results to send along, where it has them.
        timeout: Seconds to wait for the server; None for ever.

    Returns:
        How many geometries were evaluated.

    Raises:
        OSError: if no server listens there.
        ConvergenceError, ValueError: as the calculator; the server is left without an answer, and waits.
    """
    client = _Client(_connect(unixsocket, host, port, timeout), calc, extras)
    driven = atoms.copy()
    driven.calc = calc
    count = 0
    for _ in client.irun(driven, use_stress=bool(driven.pbc.any())):
        count += 1
    return count
