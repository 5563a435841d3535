"""Features of trajectories: symmetries, tokens, periodic images, files, and what is refused."""

import re
from itertools import islice
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from mdtraj.core.element import carbon, hydrogen, nitrogen, oxygen, virtual
from scipy.spatial.transform import Rotation

import featurizers.edges
from featurizers import TrajectoryFeatures, TrajectoryFeaturizer
from featurizers.analysis.frames import join
from featurizers.analysis.sources import read_back
from featurizers.images import whole
from featurizers.store import FeatureSet
from featurizers.tokens import assign_tokens
from featurizers.trajectory import read_pieces
from forcefield import Potential, build_graph, load_potential, save_potential
from forcefield.checkpoint import read_header
from forcefield.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InvalidStructureError,
    UnknownElementError,
)
from forcefield.graph import edge_vectors
from tests.conftest import Structure, make_potential

ELEMENTS = {1: hydrogen, 6: carbon, 7: nitrogen, 8: oxygen}


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    # mdtraj keeps positions in float32: 1e-7 of some nm, and the features are of order 1.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)


def single_residue(numbers: np.ndarray) -> mdtraj.Topology:
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for index, number in enumerate(numbers):
        topology.add_atom(f"{ELEMENTS[number].symbol}{index}", ELEMENTS[number], residue)
    return topology


def random_walk(structure: Structure, frames: int, step: float = 0.2) -> mdtraj.Trajectory:
    """A trajectory that starts at a structure; steps in Å, cells as the structure has them."""
    rng = np.random.default_rng(3)
    steps = rng.normal(0, step, (frames, *structure.positions.shape))
    trajectory = mdtraj.Trajectory(
        (structure.positions + 0.3 * np.tanh(np.cumsum(steps, axis=0))) / 10,
        single_residue(structure.numbers),
    )
    if structure.cell is not None:
        trajectory.unitcell_vectors = np.repeat(structure.cell[None] / 10, frames, axis=0)
    return trajectory


@pytest.fixture
def featurizer(potential: Potential) -> TrajectoryFeaturizer:
    """With each representation."""
    return TrajectoryFeaturizer.from_potential(potential)


@pytest.fixture
def hegnn() -> TrajectoryFeaturizer:
    return TrajectoryFeaturizer.from_potential(make_potential("hegnn"))


@pytest.fixture
def walk(ethanol: Structure) -> mdtraj.Trajectory:
    return random_walk(ethanol, frames=7)


@pytest.fixture
def crystal_walk(crystal: Structure) -> mdtraj.Trajectory:
    return random_walk(crystal, frames=3)


def test_features_are_those_of_the_representation(potential, walk, crystal_walk):
    featurizer = TrajectoryFeaturizer.from_potential(potential)
    for trajectory in (walk, crystal_walk):
        features = featurizer.transform(trajectory)
        numbers = np.array([atom.element.atomic_number for atom in trajectory.topology.atoms])
        cells = trajectory.unitcell_vectors
        for frame in range(trajectory.n_frames):
            graph = build_graph(
                trajectory.xyz[frame] * 10.0,
                numbers,
                potential.cutoff,
                None if cells is None else cells[frame] * 10.0,
                cells is not None,
            )
            scalars, steerable = potential.representation(
                potential.species_index[graph.atomic_numbers],
                graph.edge_index,
                edge_vectors(
                    graph.positions, graph.edge_index, graph.cell_shifts, graph.cell, graph.batch
                ),
            )
            close(features.scalars[frame], scalars.detach().numpy())
            if steerable.shape[1]:
                close(features.vectors[frame], steerable[:, :3].detach().numpy())


def test_shapes_and_labels(featurizer, walk):
    features = featurizer.transform(walk)
    channels = {"hegnn": 4, "hegnn-published": 1, "egnn": 0}
    assert features.scalars.shape == (7, 9, 16)
    assert features.vectors.shape == (
        7,
        9,
        3,
        channels[featurizer.backbone.architecture["name"]],
    )
    assert features.scalars.dtype == features.vectors.dtype == np.float32
    assert features.labels[:3] == ("MOL0-C0", "MOL0-C1", "MOL0-O2")
    assert features.scalars.std(axis=0).max() > 1e-3  # they do change with the structure


def test_turning_mirroring_and_moving_each_frame(featurizer, walk):
    before = featurizer.transform(walk)
    turns = Rotation.random(7, random_state=1).as_matrix()
    turns[3:] *= -1.0
    moved = mdtraj.Trajectory(
        np.einsum("fij,fnj->fni", turns, walk.xyz) + np.array([0.3, -1.1, 0.8]), walk.topology
    )
    after = featurizer.transform(moved)
    close(after.scalars, before.scalars)
    close(after.vectors, np.einsum("fij,fnjc->fnic", turns, before.vectors))


def test_permuted_atoms_have_permuted_tokens(featurizer, walk, ethanol):
    order = np.random.default_rng(0).permutation(9)
    permuted = mdtraj.Trajectory(walk.xyz[:, order], single_residue(ethanol.numbers[order]))
    before, after = featurizer.transform(walk), featurizer.transform(permuted)
    close(after.scalars, before.scalars[:, order])
    close(after.vectors, before.vectors[:, order])


def two_chains() -> mdtraj.Trajectory:
    """Two chains of two residues each; the last of one and the first of the other share name and number."""
    topology = mdtraj.Topology()
    for chain_id, numbers in (("A", (1, 2)), ("B", (2, 3))):
        chain = topology.add_chain(chain_id)
        previous = None
        for number in numbers:
            residue = topology.add_residue("GLY", chain, resSeq=number)
            atoms = [
                topology.add_atom(name, element, residue)
                for name, element in (("C", carbon), ("O", oxygen), ("H", hydrogen))
            ]
            if previous is not None:
                topology.add_bond(previous, atoms[0])
            previous = atoms[0]
    grid = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(3)]) * 0.15
    rng = np.random.default_rng(5)
    return mdtraj.Trajectory(grid + rng.normal(0, 0.01, (4, 12, 3)), topology)


def test_residues_of_different_chains_are_different_tokens(hegnn):
    trajectory = two_chains()
    atoms = hegnn.transform(trajectory)
    residues = hegnn.transform(trajectory, tokens="residue")
    assert residues.labels == ("A:GLY1", "A:GLY2", "B:GLY2", "B:GLY3")
    close(residues.scalars, atoms.scalars.reshape(4, 4, 3, -1).sum(2))
    close(residues.vectors, atoms.vectors.reshape(4, 4, 3, 3, -1).sum(2))
    assert len(set(atoms.labels)) == 12


def test_molecules_are_residues_joined_by_bonds(hegnn):
    trajectory = two_chains()
    residues = hegnn.transform(trajectory, tokens="residue")
    molecules = hegnn.transform(trajectory, tokens="molecule")
    assert molecules.labels == ("A:GLY1-GLY2", "B:GLY2-GLY3")
    close(molecules.scalars, residues.scalars.reshape(4, 2, 2, -1).sum(2))

    topology = trajectory.topology
    topology.add_bond(topology.atom(0), topology.atom(11))
    whole = hegnn.transform(trajectory, tokens="molecule")
    assert len(whole.labels) == 1
    close(whole.scalars, residues.scalars.sum(1, keepdims=True))
    close(whole.vectors, residues.vectors.sum(1, keepdims=True))


def test_tokens_need_not_be_contiguous(hegnn):
    trajectory = two_chains()
    # Bonds 0-2 and 1-3 of the residues instead of 0-1 and 2-3.
    topology = trajectory.topology.copy()
    topology._bonds = []
    topology.add_bond(topology.atom(6), topology.atom(0))
    topology.add_bond(topology.atom(3), topology.atom(9))
    residues = hegnn.transform(trajectory, tokens="residue").scalars
    molecules = hegnn.transform(mdtraj.Trajectory(trajectory.xyz, topology), tokens="molecule")
    close(molecules.scalars, np.stack([residues[:, [0, 2]].sum(1), residues[:, [1, 3]].sum(1)], 1))


def test_mean_pooling(hegnn, walk):
    atoms = hegnn.transform(walk)
    mean = hegnn.transform(walk, tokens="molecule", pooling="mean")
    assert mean.labels == ("MOL0",)
    close(mean.scalars[:, 0], atoms.scalars.mean(1))
    close(mean.vectors[:, 0], atoms.vectors.mean(1))


def test_wrapping_into_the_cell_changes_nothing(featurizer, crystal_walk):
    before = featurizer.transform(crystal_walk)
    images = np.random.default_rng(0).integers(-2, 3, crystal_walk.xyz.shape)
    wrapped = mdtraj.Trajectory(
        crystal_walk.xyz + np.einsum("fni,fij->fnj", images, crystal_walk.unitcell_vectors),
        crystal_walk.topology,
        unitcell_lengths=crystal_walk.unitcell_lengths,
        unitcell_angles=crystal_walk.unitcell_angles,
    )
    after = featurizer.transform(wrapped, periodic=True)
    close(after.scalars, before.scalars)
    close(after.vectors, before.vectors)
    alone = featurizer.transform(crystal_walk, periodic=False)
    assert np.abs(alone.scalars - before.scalars).max() > 1e-2


def test_each_frame_has_its_own_cell(hegnn, crystal_walk):
    crystal_walk.unitcell_vectors *= np.array([1.0, 1.05, 1.1])[:, None, None]
    alone = np.concatenate([hegnn.transform(frame).scalars for frame in crystal_walk])
    for batch_frames in (2, 3):
        close(hegnn.transform(crystal_walk, batch_frames=batch_frames).scalars, alone)
    same_cell = mdtraj.Trajectory(crystal_walk.xyz, crystal_walk.topology)
    same_cell.unitcell_vectors = np.repeat(crystal_walk.unitcell_vectors[:1], 3, axis=0)
    assert np.abs(hegnn.transform(same_cell).scalars[2] - alone[2]).max() > 1e-2


def test_neighbour_search_and_all_pairs_agree(hegnn, walk, monkeypatch):
    pairs = hegnn.transform(walk)
    monkeypatch.setattr(featurizers.edges, "ALL_PAIRS_ATOMS", 0)
    searched = hegnn.transform(walk)
    close(searched.scalars, pairs.scalars)
    close(searched.vectors, pairs.vectors)


@pytest.mark.parametrize("batch_frames", [1, 3, 7, 100])
def test_batches_do_not_matter(featurizer, walk, batch_frames):
    together = featurizer.transform(walk)
    batched = featurizer.transform(walk, batch_frames=batch_frames)
    close(batched.scalars, together.scalars)
    close(batched.vectors, together.vectors)


def test_atoms_without_neighbours(featurizer):
    topology = single_residue(np.array([6, 8]))
    apart = mdtraj.Trajectory(np.array([[[0.0, 0, 0], [2.0, 0, 0]]]), topology)
    features = featurizer.transform(apart)
    assert np.isfinite(features.scalars).all()
    np.testing.assert_array_equal(features.vectors, 0)
    close(features.positions, 10 * apart.xyz)


@pytest.mark.parametrize("stride", [1, 3])
def test_files_in_pieces(hegnn, walk, tmp_path, stride):
    walk.save(tmp_path / "md.dcd")
    walk[0].save(tmp_path / "molecule.pdb")
    arguments = {"top": tmp_path / "molecule.pdb", "chunk": 2, "stride": stride}
    pieces = list(hegnn.stream_file(tmp_path / "md.dcd", **arguments))
    assert len(pieces) > 1
    assert all(len(piece.scalars) <= 2 for piece in pieces)
    joined = hegnn.transform_file(tmp_path / "md.dcd", **arguments)
    loaded = mdtraj.load(str(tmp_path / "md.dcd"), top=str(tmp_path / "molecule.pdb"))
    expected = hegnn.transform(loaded[::stride])
    close(joined.scalars, expected.scalars)
    close(joined.vectors, expected.vectors)
    close(joined.positions, expected.positions)
    assert joined.labels == expected.labels
    rest = list(hegnn.stream_file(tmp_path / "md.dcd", **arguments, skip=3))
    close(
        np.concatenate([piece.scalars for piece in rest]),
        hegnn.transform(loaded[3::stride]).scalars,
    )


@pytest.mark.parametrize("ending", ["xtc", "trr", "dcd", "nc", "h5", "xyz", "pdb", "gro"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("atoms", [None, [0, 2, 5]], ids=["all", "some"])
def test_what_is_behind_skipped_frames(ethanol, tmp_path, ending, stride, atoms):
    walk = random_walk(ethanol, frames=9)
    path = tmp_path / f"md.{ending}"
    walk.save(path)
    expected = walk.xyz if atoms is None else walk.xyz[:, atoms]
    for skip in range(9):
        pieces = read_pieces(path, walk.topology, 2, stride, skip, atoms)
        # One more than there should be: an XTC used to have no end.
        found = [frame for piece in islice(pieces, 10) for frame in piece.xyz]
        np.testing.assert_allclose(found, expected[skip::stride], rtol=0, atol=1e-3)


def test_part_of_the_atoms_of_a_file(hegnn, walk, tmp_path):
    walk.save(tmp_path / "md.dcd")
    part = hegnn.transform_file(tmp_path / "md.dcd", top=walk.topology, atom_indices=[0, 1, 2])
    expected = hegnn.transform(walk.atom_slice([0, 1, 2]))
    close(part.scalars, expected.scalars)
    assert part.labels == expected.labels


def test_from_weights_of_a_potential(walk, tmp_path):
    potential = make_potential("hegnn", dtype=torch.float32)
    save_potential(potential, tmp_path / "potential.safetensors")
    loaded = TrajectoryFeaturizer.from_file(tmp_path / "potential.safetensors")
    expected = TrajectoryFeaturizer.from_potential(potential).transform(walk)
    np.testing.assert_array_equal(loaded.transform(walk).scalars, expected.scalars)
    double = TrajectoryFeaturizer.from_file(
        str(tmp_path / "potential.safetensors"), dtype=torch.float64
    )
    assert double.backbone.dtype == torch.float64
    close(double.transform(walk).scalars, expected.scalars)
    with pytest.raises(CheckpointError, match="no weights file"):
        TrajectoryFeaturizer.from_file(tmp_path / "other.safetensors")


def test_devices_that_are_not_there(tmp_path):
    save_potential(make_potential("hegnn"), tmp_path / "potential.safetensors")
    for device in ("gpu", "meta"):
        with pytest.raises(ConfigError, match=f"unknown device '{device}'"):
            TrajectoryFeaturizer.from_file(tmp_path / "potential.safetensors", device)
    with pytest.raises(ConfigError, match="CUDA device"):
        TrajectoryFeaturizer.from_file(tmp_path / "potential.safetensors", "cuda:99")


def test_backbones_without_a_readout(walk, tmp_path):
    potential = make_potential("egnn", dtype=torch.float32)
    featurizer = TrajectoryFeaturizer.from_potential(potential)
    path = tmp_path / "backbone.safetensors"
    featurizer.backbone.save(path, {"name": "of a test"})
    loaded = TrajectoryFeaturizer.from_file(path)
    np.testing.assert_array_equal(
        loaded.transform(walk).scalars, featurizer.transform(walk).scalars
    )
    assert loaded.backbone.cutoff == potential.cutoff
    assert read_header(path)["name"] == "of a test"
    with pytest.raises(CheckpointError, match="knows no energies"):
        load_potential(path)


def test_tokens_without_hydrogens(hegnn, walk):
    whole = hegnn.transform(walk)
    heavy = hegnn.transform(walk, hydrogens=False)
    assert heavy.labels == whole.labels[:3]
    close(heavy.scalars, whole.scalars[:, :3])  # the network still sees the hydrogens
    residue = hegnn.transform(walk, tokens="residue", hydrogens=False)
    close(residue.scalars[:, 0], whole.scalars[:, :3].sum(axis=1))
    hydrogen_alone = mdtraj.Trajectory(np.zeros((1, 1, 3)), single_residue(np.array([1])))
    with pytest.raises(ConfigError, match="leaves nothing of 1 atoms"):
        hegnn.transform(hydrogen_alone, hydrogens=False)


def test_alpha_carbons(hegnn):
    trajectory = two_chains()
    for residue in list(trajectory.topology.residues)[1:]:
        next(residue.atoms_by_name("C")).name = "CA"
    calcium = trajectory.topology.residue(0).atom(0)
    calcium.name = "CA"
    calcium.element = mdtraj.element.calcium
    assert assign_tokens(trajectory.topology, "ca").labels == (
        "A:GLY2-CA",
        "B:GLY2-CA",
        "B:GLY3-CA",
    )
    calcium.element = carbon
    features = hegnn.transform(trajectory, tokens="ca")
    close(features.scalars, hegnn.transform(trajectory).scalars[:, ::3])
    close(features.positions, 10 * trajectory.xyz[:, ::3])


def test_beads_of_ones_own(hegnn, walk):
    atoms = hegnn.transform(walk)
    beads = {"head": [2, 8], "tail": [0, 3, 4, 5], "again": [2]}
    features = hegnn.transform(walk, tokens=beads, pooling="mean")
    assert features.labels == ("head", "tail", "again")
    for k, members in enumerate(beads.values()):
        close(features.scalars[:, k], atoms.scalars[:, members].mean(axis=1))
        close(features.vectors[:, k], atoms.vectors[:, members].mean(axis=1))
        close(features.positions[:, k], 10 * walk.xyz[:, members].mean(axis=1))
    with pytest.raises(ConfigError, match="'head' has atom 9; atoms are numbered from 0 to 8"):
        hegnn.transform(walk, tokens={"head": [9]})
    with pytest.raises(ConfigError, match="'none' has no atoms"):
        hegnn.transform(walk, tokens={"none": []})


def test_positions_of_molecules_that_the_cell_cuts(hegnn, tmp_path):
    trajectory = two_chains()
    cell = np.array([[1.2, 0.0, 0.0], [0.3, 1.1, 0.0], [-0.2, 0.4, 1.3]])
    trajectory.unitcell_vectors = np.repeat(cell[None], 4, axis=0)
    atoms = list(trajectory.topology.atoms)
    for residue in range(4):
        for k in (1, 2):
            trajectory.topology.add_bond(atoms[3 * residue], atoms[3 * residue + k])
    expected = hegnn.transform(trajectory, tokens="residue")
    inside = np.einsum("fni,ij->fnj", trajectory.xyz, np.linalg.inv(cell)) + np.array(
        [0.05, 0.9, 0.95]
    )
    wrapped = trajectory[:]
    wrapped.xyz = np.einsum("fni,ij->fnj", inside % 1.0, cell)
    assert np.ptp(np.floor(inside), axis=1).max() == 1  # it is cut
    actual = hegnn.transform(wrapped, tokens="residue")
    close(actual.scalars, expected.scalars)
    # Nor does the cell cut structures that are read back.
    wrapped[0].save(str(tmp_path / "start.pdb"))
    wrapped.save(str(tmp_path / "md.dcd"))
    description = {"sources": [str(tmp_path / "md.dcd")], "topology": str(tmp_path / "start.pdb")}
    features = FeatureSet([actual], {**description, "options": {}})
    structures, _ = read_back(features, join([actual]), [1, 3])
    bonds = [(a.index, b.index) for a, b in trajectory.topology.bonds]
    close(
        mdtraj.compute_distances(structures, bonds, periodic=False),
        mdtraj.compute_distances(trajectory[[1, 3]], bonds, periodic=False),
    )
    close(
        actual.positions - actual.positions[:, :1], expected.positions - expected.positions[:, :1]
    )


@pytest.mark.parametrize("bonds", [True, False])
def test_a_protein_in_a_cell_is_in_one_piece_also_without_bonds(bonds):
    """GRO files have none, nor have universes of MDAnalysis that were read from them."""
    path = Path(__file__).parents[2] / "examples" / "alanine_dipeptide.pdb"
    peptide = mdtraj.load(str(path))
    if not bonds:
        peptide.topology._bonds = []
    expected = peptide.xyz[0].astype(float)
    size = np.ptp(expected, axis=0).max()
    cell = np.diag([1.2 * size, 1.3 * size, 1.5 * size])
    # The whole molecule, and one with a face of the cell through its middle.
    for place in (expected.min(axis=0) - 0.01, expected.mean(axis=0)):
        peptide.xyz = np.mod(expected - place, np.diag(cell))[None]
        peptide.unitcell_vectors = cell[None]
        found = whole(peptide, True)[0]
        np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-5)


def test_a_second_molecule_stays_beside_the_first():
    """By its centre: the first atoms of the two are further from each other than half the cell."""
    rod = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.2, 0.0, 0.0], [0.3, 0.0, 0.0]])
    positions = np.concatenate([rod, np.add(rod[::-1], (0.35, 0.1, 0.0))])
    topology = mdtraj.Topology()
    for _ in range(2):
        residue = topology.add_residue("LIG", topology.add_chain())
        for _ in range(4):
            topology.add_atom("C", mdtraj.element.carbon, residue)
    trajectory = mdtraj.Trajectory(positions[None], topology)
    trajectory.unitcell_vectors = np.diag([0.75, 0.9, 0.9])[None]
    np.testing.assert_allclose(whole(trajectory, True)[0], positions, atol=1e-6)


def test_tokens_of_one_name_are_told_apart(hegnn, walk):
    topology = walk.topology.copy()
    for atom in topology.atoms:
        atom.name = atom.element.symbol
    labels = assign_tokens(topology, "atom").labels
    assert len(set(labels)) == len(labels) == 9
    assert sum("-C#" in label for label in labels) == 2
    assert sum(label.endswith("-O") for label in labels) == 1


def test_elements_come_from_the_topology(hegnn, walk):
    residue = walk.topology.residue(0)
    # A name that looks like calcium or carbon says nothing.
    residue.atom(8).name = "CA"
    residue.atom(4).element = nitrogen
    with pytest.raises(UnknownElementError, match=r"atom 4 \(MOL0-H4\) is N .* H, C, O only"):
        hegnn.transform(walk)
    residue.atom(4).element = None
    with pytest.raises(UnknownElementError, match=r"atom 4 .* no element in the topology"):
        hegnn.transform(walk)
    residue.atom(4).element = virtual
    with pytest.raises(InvalidStructureError, match=r"atom 4 .* virtual site"):
        hegnn.transform(walk)


def test_bad_frames_are_named(hegnn, walk, tmp_path):
    walk.xyz[5, 2] = np.nan
    with pytest.raises(InvalidStructureError, match="frame 5: the position of atom 2"):
        hegnn.transform(walk, batch_frames=2)
    walk.xyz[5, 2] = walk.xyz[5, 7]
    with pytest.raises(InvalidStructureError, match="frame 5: atoms 2 and 7 are in the same"):
        hegnn.transform(walk, batch_frames=2)
    walk.save(tmp_path / "md.dcd")
    with pytest.raises(InvalidStructureError, match="frame 5: atoms 2 and 7"):
        hegnn.transform_file(tmp_path / "md.dcd", top=walk.topology, chunk=1, stride=5)


@pytest.mark.filterwarnings("ignore::UserWarning:mdtraj", "ignore::RuntimeWarning:mdtraj")
def test_cells_that_cannot_be(hegnn, walk):
    with pytest.raises(DataError, match="no unit cell"):
        hegnn.transform(walk, periodic=True)
    expected = hegnn.transform(walk)
    walk.unitcell_lengths = np.full((7, 3), 0.1)
    for angle in (90.0, 0.0):
        walk.unitcell_angles = np.full((7, 3), angle)
        with pytest.raises(InvalidStructureError, match=r"frame 0: .* no room for 9 atoms"):
            hegnn.transform(walk)
    close(hegnn.transform(walk, periodic=False).scalars, expected.scalars)


def test_impossible_options(hegnn, walk):
    with pytest.raises(ConfigError, match="unknown tokens 'chain'; known are atom, residue"):
        hegnn.transform(walk, tokens="chain")
    with pytest.raises(ConfigError, match="unknown pooling 'max'"):
        hegnn.transform(walk, pooling="max")
    with pytest.raises(ConfigError, match="batch_frames"):
        hegnn.transform(walk, batch_frames=0)
    with pytest.raises(ConfigError, match="chunk and stride"):
        hegnn.transform_file("md.dcd", chunk=0)
    with pytest.raises(DataError, match="no frames"):
        hegnn.transform(walk[:0])


def test_molecules_without_bonds(hegnn):
    trajectory = two_chains()
    trajectory.topology._bonds = []
    with pytest.raises(DataError, match="4 residues and no bonds"):
        hegnn.transform(trajectory, tokens="molecule")


def test_unreadable_files(hegnn, walk, tmp_path):
    walk.save(tmp_path / "md.dcd")
    for path, top in (
        (tmp_path / "other.dcd", walk.topology),
        (tmp_path / "md.dcd", None),
        (tmp_path / "md.dcd", two_chains().topology),
        (tmp_path / "md.unknown", walk.topology),
    ):
        with pytest.raises(DataError, match=path.name):
            hegnn.transform_file(path, top=top)


def test_code_of_the_documentation(ethanol, tmp_path, monkeypatch):
    walk = random_walk(ethanol, frames=800)
    walk.save(tmp_path / "md.dcd")
    walk[0].save(tmp_path / "molecule.pdb")
    save_potential(
        make_potential("hegnn", dtype=torch.float32),
        tmp_path / "runs" / "ethanol" / "potential.safetensors",
    )
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "featurizers.md"
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    features = names["features"]
    assert isinstance(features, TrajectoryFeatures)
    assert names["slow"].shape == (400, 2)
    timescales = names["timescales"]
    assert timescales[0] >= timescales[1] > 0
    assert names["stored"].frame_time == 2.0
    assert names["result"].analysis.coordinates.shape == (400, 2)
    assert (tmp_path / "report" / "report.html").is_file()
    assert names["marked"].scalars.shape[2] == features.scalars.shape[2] + 3


@pytest.mark.parametrize("weights", ["general", "denoising"])
def test_pretrained_weights_featurise_without_a_potential_of_ones_own(weights):
    positions = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    trajectory = random_walk(Structure(positions, np.array([8, 1, 1])), frames=3)
    featurizer = TrajectoryFeaturizer.pretrained(weights, dtype=torch.float64)
    features = featurizer.transform(trajectory)
    assert features.scalars.shape[:2] == (3, 3)
    assert features.vectors.shape[:3] == (3, 3, 3)
    turn = Rotation.from_rotvec([0.3, -1.0, 0.5])
    turned = trajectory[:]
    turned.xyz = (trajectory.xyz.reshape(-1, 3) @ turn.as_matrix().T).reshape(3, 3, 3)
    again = featurizer.transform(turned)
    np.testing.assert_allclose(again.scalars, features.scalars, rtol=0, atol=1e-5)
    assert np.abs(features.scalars[0] - features.scalars[1]).max() > 1e-3
    with pytest.raises(ConfigError, match="known are general, denoising"):
        TrajectoryFeaturizer.pretrained("best")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hegnn", "egnn"])
def test_compiled_networks_give_the_same_features(kind, walk, tmp_path):
    potential = make_potential(kind, dtype=torch.float32)
    save_potential(potential, tmp_path / "potential.safetensors")
    expected = TrajectoryFeaturizer.from_potential(potential).transform(walk)
    compiled = TrajectoryFeaturizer.from_file(tmp_path / "potential.safetensors", compile=True)
    for batch_frames in (7, 2):
        features = compiled.transform(walk, batch_frames=batch_frames)
        close(features.scalars, expected.scalars)
        close(features.vectors, expected.vectors)
    alone = mdtraj.Trajectory(np.zeros((1, 1, 3)), single_residue(np.array([6])))
    assert np.isfinite(compiled.transform(alone).scalars).all()
