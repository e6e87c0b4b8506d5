"""Neighbours against all images, in every orientation, periodicity and order of lattice vectors."""

import itertools

import numpy as np
import pytest

pytest.importorskip("matscipy", reason="needs mace-torch")

from scipy.spatial.transform import Rotation

from scfmlip import neighbours
from scfmlip.mace_torch.cells import reference_cell
from scfmlip.neighbours import SkinList, neighbour_pairs

PERIODICITIES = list(itertools.product((True, False), repeat=3))
CELLS = {
    "cubic": np.diag([4.0, 4.5, 5.0]),
    "tiny": np.diag([0.9, 1.1, 1.0]) + 0.1,
    "sheared": np.array([[3.0, 0, 0], [14.0, 2.5, 0], [-9.0, 11.0, 4.0]]),
    "left-handed": np.array([[0, 4.0, 0.5], [5.0, 0.3, 0], [0.2, 0.1, 6.0]]),
}


def brute_force(positions, cell, pbc, cutoff):
    """Every image that may be within reach, one by one: (sender, receiver, image)."""
    vectors = cell[pbc]
    spans = []
    for row in np.linalg.pinv(vectors).T:
        along = positions @ row
        spans.append(int(np.ceil(cutoff * np.linalg.norm(row) + np.ptp(along))) + 1)
    found = set()
    for image in itertools.product(*[range(-s, s + 1) for s in spans]):
        vector = np.asarray(image) @ vectors if len(vectors) else np.zeros(3)
        lengths = np.linalg.norm(positions[None] - positions[:, None] + vector, axis=2)
        whole = np.zeros(3, dtype=int)
        whole[pbc] = image
        for i, j in np.argwhere(lengths < cutoff).tolist():
            if i != j or whole.any():
                found.add((i, j, *whole.tolist()))
    return found


def as_set(pairs):
    edges, images = pairs
    listed = list(zip(*edges.tolist(), *images.T.tolist(), strict=True))
    assert len(set(listed)) == len(listed)
    assert (np.diff(edges[0]) >= 0).all()
    return set(listed)


@pytest.mark.parametrize("pbc", PERIODICITIES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_equals_all_images(name, pbc):
    generator = np.random.default_rng(PERIODICITIES.index(pbc))
    pbc, cutoff = np.array(pbc), 3.0
    for turn, order in zip((0, 90, 37), itertools.permutations(range(3)), strict=False):
        cell = CELLS[name] @ Rotation.from_euler("xyz", [turn, turn / 2, 0], degrees=True).as_matrix().T
        cell, flags = cell[list(order)], pbc[list(order)]
        # the atoms of a slab or a wire in one place, whatever the open vectors are
        positions = generator.random((3, 3)) @ np.where(flags[:, None], cell, np.eye(3) * 3)
        want = brute_force(positions, cell, flags, cutoff)
        assert as_set(neighbour_pairs(positions, cell, flags, cutoff)) == want
        for other in (np.zeros(3), cell[flags].sum(0), np.array([1e-3, 0, 0])):
            open_vectors = np.where(flags[:, None], cell, other)
            assert as_set(neighbour_pairs(positions, open_vectors, flags, cutoff)) == want


@pytest.mark.parametrize("pbc", PERIODICITIES, ids=str)
def test_atoms_far_away(pbc):
    """In other images, by any number of cells, or the whole system anywhere."""
    generator = np.random.default_rng(1)
    cell, pbc = CELLS["left-handed"], np.array(pbc)
    positions = generator.random((5, 3)) * 4
    edges, images = neighbour_pairs(positions, cell, pbc, 3.5)
    jumps = np.where(pbc, generator.integers(-5000, 5000, (5, 3)), 0)
    moved = positions + jumps @ cell + np.array([1000.0, -300.0, 1e4])
    want = {
        (i, j, *s)
        for i, j, s in zip(*edges, (images + jumps[edges[0]] - jumps[edges[1]]).tolist(), strict=True)
    }
    assert as_set(neighbour_pairs(moved, cell, pbc, 3.5)) == want


def test_fragments_and_cells_that_are_nearly_empty():
    """The cell list's memory follows the atoms, not the volume: 1e7 angstrom once meant terabytes."""
    positions = np.random.default_rng(2).random((8, 3)) * 2
    positions[4:] += 1e7 / np.sqrt(3)
    for pbc, cell in ((False, np.zeros((3, 3))), (True, np.eye(3) * 4e7)):
        edges, images = neighbour_pairs(positions, cell, np.full(3, pbc), 5.0)
        assert edges.shape == (2, 24)
        assert not images.any()


def test_the_references_cells():
    """mace-torch 0.3.16's own where its vectors lie across the periodic ones, whatever the rows' order."""
    neighborhood = pytest.importorskip("mace.data.neighborhood")
    positions = np.random.default_rng(3).normal(size=(4, 3)) * 3
    for flags in PERIODICITIES[:-1]:
        pbc, cell = np.array(flags), np.diag([4.0, 5.0, 6.0])
        if pbc.sum() == 2:
            cell[np.flatnonzero(pbc)[1], np.flatnonzero(pbc)[0]] = 0.7
        theirs = neighborhood.get_neighborhood(positions, 3.0, flags, cell.copy())[3]
        np.testing.assert_array_equal(reference_cell(positions, cell, pbc, 3.0), theirs)
        for order in itertools.permutations(range(3)):
            rows = list(order)
            other = reference_cell(positions, cell[rows], pbc[rows], 3.0)
            np.testing.assert_allclose(np.linalg.norm(other, axis=1), np.linalg.norm(theirs, axis=1)[rows])
            np.testing.assert_allclose(other[pbc[rows]], cell[rows][pbc[rows]])
            assert abs(np.linalg.det(other)) == pytest.approx(np.linalg.det(theirs))
        # turned, with the first lattice vector upright before
        matrix = Rotation.random(random_state=4).as_matrix()
        turned = reference_cell(positions @ matrix.T, cell @ matrix.T, pbc, 3.0)
        if pbc.sum() != 1:  # how a wire is turned about its axis nobody knows
            np.testing.assert_allclose(
                np.abs(turned @ matrix @ theirs.T), np.abs(theirs @ theirs.T), atol=1e-9
            )
    box = reference_cell(positions, np.zeros((3, 3)), np.zeros(3, bool), 3.0)
    np.testing.assert_allclose(reference_cell(positions + 1e6, box, np.zeros(3, bool), 3.0), box)


def test_more_pairs_than_memory(monkeypatch):
    """Refused before the list is made."""
    monkeypatch.setattr(neighbours, "free_memory", lambda device: 2.0**20)
    positions = np.random.default_rng(0).uniform(0, 30, (2000, 3))
    for pbc in ((1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 0)):
        with pytest.raises(ValueError, match=r"2000 atoms have about .* pairs .* GiB free: check that cell"):
            neighbour_pairs(positions, 30 * np.eye(3), np.array(pbc, dtype=bool), 6.0)


def test_no_atoms():
    pairs, images = neighbour_pairs(np.zeros((0, 3)), np.eye(3), np.ones(3, dtype=bool), 3.0)
    assert pairs.shape == (2, 0)
    assert images.shape == (0, 3)


@pytest.mark.parametrize("pbc", [(True, False, False), (True, True, False), (True, True, True)])
def test_a_cell_that_is_no_cell_is_refused(pbc):
    """One atom would have more neighbours than memory holds."""
    with pytest.raises(ValueError, match=r"so small that 1 atoms have more than 1e[+]05 neighbours"):
        neighbour_pairs(np.zeros((1, 3)), np.diag([1e-7, 5.0, 5.0]), np.array(pbc), 5.0)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False)], ids=str)
@pytest.mark.parametrize("strained", [False, True])
def test_a_list_with_a_skin_is_a_fresh_one(pbc, strained):
    """At every step of a walk through cells, with a cell that changes, and it is not made anew every time."""
    generator, pbc, cutoff = np.random.default_rng(3), np.array(pbc), 3.0
    cell = CELLS["sheared"] * 1.5
    positions = generator.uniform(-1, 2, (12, 3)) @ cell
    velocities, kept, steps = generator.normal(scale=0.03, size=(12, 3)), SkinList(1.0), 40
    for step in range(steps):
        got, want = kept(positions, cell, pbc, cutoff), neighbour_pairs(positions, cell, pbc, cutoff)
        assert as_set(got) == as_set(want)
        positions = positions + velocities + generator.normal(scale=0.005, size=(12, 3))
        if strained:
            strain = np.eye(3) + generator.normal(scale=2e-3, size=(3, 3))
            positions, cell = positions @ strain, cell @ strain
        if step == 30:  # an atom back in the cell
            positions[3] += cell[0] * pbc[0]
    assert kept.builds <= steps // 2 or (strained and not pbc.all())
    assert kept.builds > 2


def test_pairs_come_in_from_beyond_a_skin():
    """Two atoms that fly at each other, each a little less than half a skin a step."""
    cell, pbc, kept = np.eye(3) * 30.0, np.ones(3, dtype=bool), SkinList(0.5)
    for step in range(12):
        positions = np.array([[0.0, 0, 0], [5.0, 0, 0]]) + step * np.array([[0.24, 0, 0], [-0.24, 0, 0]])
        pairs, _ = kept(positions, cell, pbc, 3.0)
        near = abs(positions[1, 0] - positions[0, 0]) < 3.0
        assert pairs.shape[1] == 2 * near


def test_a_shrinking_crystal_needs_a_new_list():
    cell, pbc, kept = np.eye(3) * 4.0, np.ones(3, dtype=bool), SkinList(0.2)
    for scale in (1.0, 0.99, 0.97, 0.74):
        pairs, _ = kept(np.zeros((1, 3)), cell * scale, pbc, 3.0)
        assert pairs.shape[1] == (6 if 4 * scale < 3 else 0)


def test_what_a_list_with_a_skin_refuses():
    for skin in (-1, np.nan, np.inf, True, "x", None):
        with pytest.raises(ValueError, match="skin must be a number of at least 0, angstrom"):
            SkinList(skin)
    cell, pbc, kept = np.eye(3) * 9.0, np.ones(3, dtype=bool), SkinList(1.0)
    kept(np.array([[0.0, 0, 0], [0.2, 0, 0]]), cell, pbc, 3.0)
    with pytest.raises(ValueError, match="atoms 0 and 1 are in one place"):
        kept(np.array([[0.1, 0, 0], [0.1, 0, 0]]), cell, pbc, 3.0)
    assert kept.builds == 1
    # another cutoff, another number of atoms
    assert kept(np.zeros((1, 3)), cell, pbc, 9.5)[0].shape == (2, 6)
    assert kept(np.zeros((1, 3)), cell, pbc, 2.0)[0].shape == (2, 0)
