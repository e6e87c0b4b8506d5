"""Files of structures: what is wrong with one is said in one way."""

import gzip

import numpy as np
import pytest

pytest.importorskip("ase", reason="needs ASE")

from ase.build import molecule
from ase.io import write

from scfmlip.structures import FileError, read_structures


@pytest.fixture
def lines(tmp_path):
    atoms = molecule("CH3CH2OH")
    write(tmp_path / "good.xyz", [atoms, atoms], format="extxyz")
    return (tmp_path / "good.xyz").read_text().splitlines()


def test_good_files(tmp_path, lines):
    frames = read_structures(tmp_path / "good.xyz")
    assert [len(a) for a in frames] == [9, 9]
    assert len(read_structures(tmp_path / "good.xyz", 1)) == 1
    assert len(read_structures(tmp_path / "good.xyz", "-1:")) == 1
    for i, flags in enumerate(('"T T F"', "[T, T, F]", "{1 1 0}", '"True true FALSE"')):
        text = '1\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3 pbc=' + flags + "\nH 0 0 0\n"
        (tmp_path / f"{i}.xyz").write_text(text)
        assert read_structures(tmp_path / f"{i}.xyz")[0].pbc.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [], "it is empty"),
        (lambda lines: ["", ""], "holds no frames"),
        (lambda lines: lines[:-2], "Frame has 7 atoms, expected 9"),
        (lambda lines: [*lines[:-1], lines[-1][:10]], "cannot be read: ValueError"),
        (lambda lines: lines[:12], "it ends in the middle of a frame"),
        (lambda lines: [*lines[:11], "9"], "it ends in the middle of a frame"),
        (lambda lines: [*lines, "hello"], "Expected xyz header"),
        (lambda lines: ["hello", "world"], "cannot be read"),
        (lambda lines: ["1", 'pbc="nan nan nan"', "H 0 0 0"], 'frame 0 has pbc="nan nan nan": T or F only'),
        (lambda lines: ["1", 'pbc="T F X"', "H 0 0 0"], 'frame 0 has pbc="T F X"'),
        (lambda lines: [*lines, "", *lines], "an empty line stands before frame 2"),
    ],
)
def test_bad_files(tmp_path, lines, spoil, message):
    (tmp_path / "bad.xyz").write_text("".join(f"{line}\n" for line in spoil(lines)))
    with pytest.raises(FileError, match=rf"data.train: .*bad.xyz.*{message}"):
        read_structures(tmp_path / "bad.xyz", what="data.train")
    assert issubclass(FileError, ValueError)


def test_an_empty_line_ends_nothing(tmp_path, lines):
    """ASE stops there: -1 would be another frame, and a slice shorter."""
    (tmp_path / "in.xyz").write_text("\n".join([*lines, "", *lines, ""]))
    for index in (-1, "1:3", ":"):
        with pytest.raises(FileError, match="an empty line stands before frame 2"):
            read_structures(tmp_path / "in.xyz", index)
    assert len(read_structures(tmp_path / "in.xyz", 1)) == 1


def test_no_such_file_or_frame(tmp_path, lines):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_structures(tmp_path / "none.xyz")
    with pytest.raises(FileError, match="has no frame 7"):
        read_structures(tmp_path / "good.xyz", 7)
    with pytest.raises(FileError, match="holds no frames 7:"):
        read_structures(tmp_path / "good.xyz", "7:")
    (tmp_path / "data.npy").write_bytes(np.zeros(3).tobytes())
    with pytest.raises(FileError, match=r"data.npy cannot be read: .*"):
        read_structures(tmp_path / "data.npy")


@pytest.mark.parametrize("index", [-3, 2, -100])
def test_frames_that_are_not_there(tmp_path, lines, index):
    """Of -3 ASE makes some frame of the two."""
    with pytest.raises(FileError, match=f"has no frame {index}"):
        read_structures(tmp_path / "good.xyz", index)


def test_flags_of_compressed_files(tmp_path, lines):
    with gzip.open(tmp_path / "bad.xyz.gz", "wt") as file:
        file.write('1\npbc="T F X"\nH 0 0 0\n')
    with pytest.raises(FileError, match='frame 0 has pbc="T F X"'):
        read_structures(tmp_path / "bad.xyz.gz")


def test_numbers_of_atoms_that_no_file_holds(tmp_path, lines):
    """ASE would count to them."""
    (tmp_path / "bad.xyz").write_text("\n".join([*lines[:11], "1000000000000", *lines[12:]]))
    with pytest.raises(FileError, match="ends in the middle of a frame of 1000000000000 atoms"):
        read_structures(tmp_path / "bad.xyz")
