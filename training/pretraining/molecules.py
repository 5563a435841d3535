"""Geometries to start from: QM7, SPICE and molecules put together from rings and substituents.

    python -m training.pretraining.molecules molecules.npz --qm7 qm7.xyz --spice monomers.hdf5 ...

RDKit assembles and embeds the third kind; h5py reads SPICE.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from training.pretraining.storage import Structure, save_structures

ELEMENTS = frozenset({1, 6, 7, 8, 9, 16, 17})
"""Elements of the backbone: H C N O F S Cl."""

EXCLUDED = {
    "aspirin": "C9H8O4",
    "azobenzene": "C12H10N2",
    "benzene": "C6H6",
    "ethanol": "C2H6O",
    "malonaldehyde": "C3H4O2",
    "naphthalene": "C10H8",
    "paracetamol": "C8H9NO2",
    "salicylic acid": "C7H6O3",
    "toluene": "C7H8",
    "uracil": "C4H4N2O2",
    "acetylacetone": "C5H8O2",
}
"""Compositions that benchmarks test on: no isomer of these molecules is ever pretrained on."""

RINGS = (
    "c1ccccc1",
    "c1ccncc1",
    "c1cncnc1",
    "c1cc[nH]c1",
    "c1ccoc1",
    "c1ccsc1",
    "c1c[nH]cn1",
    "c1cscn1",
    "c1ccc2ccccc2c1",
    "c1ccc2[nH]ccc2c1",
    "c1ccc2ncccc2c1",
    "c1ccc2occc2c1",
    "C1CCCCC1",
    "C1CCCC1",
    "C1CCOC1",
    "C1CCNCC1",
    "C1COCCN1",
    "C1=CCCCC1",
    "O=C1CCCN1",
    "O=c1cc[nH]cc1",
    "O=c1nc[nH]cc1",
    "C1CC1",
    "C1CO1",
)
LINKERS = ("", "C", "O", "N", "S", "CC", "C=C", "C(=O)", "C(=O)N", "C(=O)O", "N=N", "CO", "C=N")
SUBSTITUENTS = (
    *("C", "C", "CC", "C(C)C", "C=C", "C#C", "C#N", "C(F)(F)F", "CO", "CN", "CCO", "CC#N"),
    *("O", "O", "OC", "OC(C)=O", "OC=O", "OCC", "C=O", "C(C)=O", "C(=O)O", "C(=O)O", "C(=O)OC"),
    *("N", "NC", "N(C)C", "NC(C)=O", "NC=O", "C(N)=O", "C(=O)NC", "[N+](=O)[O-]", "F", "Cl"),
    *("S", "SC", "S(C)(=O)=O", "CC(=O)O", "CC=O", "CC(N)=O", "C=CC=O", "C(=O)CC=O"),
)
CHAINS = (
    *("C", "C", "CC", "C(C)", "C=C", "C#C", "C(=O)", "C(=O)", "C(O)", "C(N)", "C(F)", "C(Cl)"),
    *("O", "OC", "N", "NC", "S", "C(=O)N", "C(=O)O", "C(C#N)", "C(C(=O)O)", "C=N"),
)
"""Parts of molecules without rings."""

MAX_ATOMS = 30
MAX_HEAVY_ATOMS = 15


def composition(numbers: np.ndarray) -> str:
    """Hill formula of a molecule from its atomic numbers (n,)."""
    from ase.formula import Formula
    from ase.symbols import Symbols

    return Formula(str(Symbols(numbers))).format("hill")


def is_wanted(numbers: np.ndarray) -> bool:
    """Whether a molecule has known elements, no radical, and is no isomer of a benchmark's molecule."""
    return (
        set(numbers.tolist()) <= ELEMENTS
        and int(numbers.sum()) % 2 == 0
        and composition(numbers) not in EXCLUDED.values()
    )


def read_qm7(path: Path) -> Iterator[Structure]:
    """Relaxed molecules of an xyz file, one geometry each."""
    from ase.io import iread

    for index, atoms in enumerate(iread(path)):
        yield Structure(atoms.numbers, atoms.positions, f"qm7-{index}")


def read_spice(path: Path, waters: int = 2) -> Iterator[Structure]:
    """Neutral molecules of a SPICE file, all their conformations.

    A solvated molecule keeps its nearest water molecules.

    Args:
        path: HDF5 file with ``smiles`` (mapped) and ``conformations`` (f, n, 3), nm.
        waters: Water molecules to keep.
    """
    import h5py
    from rdkit import Chem

    with h5py.File(path) as file:
        for name, group in file.items():
            parser: Any = Chem.SmilesParserParams()
            parser.removeHs = False
            molecule = Chem.MolFromSmiles(group["smiles"][0].decode(), parser)
            if molecule is None or Chem.GetFormalCharge(molecule):
                continue
            place = [atom.GetAtomMapNum() - 1 for atom in molecule.GetAtoms()]
            numbers = np.zeros(len(place), dtype=np.int64)
            numbers[place] = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
            fragments = [[place[k] for k in part] for part in Chem.GetMolFrags(molecule)]
            solute = max(fragments, key=len)
            rest = [part for part in fragments if part is not solute]
            for positions in np.asarray(group["conformations"], dtype=float) * 10.0:
                near = sorted(rest, key=lambda part: _distance(positions, part, solute))
                kept = [*solute, *(k for part in near[:waters] for k in part)]
                yield Structure(numbers[kept], positions[kept], f"spice-{name}")


def assemble(count: int, seed: int) -> Iterator[Structure]:
    """Molecules from rings, linkers, chains and substituents, embedded and relaxed with MMFF94.

    Args:
        count: Different molecules.
        seed: Of the choice.
    """
    from rdkit import Chem, RDLogger
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    RDLogger.logger().setLevel(RDLogger.CRITICAL)
    choice = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < count:
        smiles = _random_smiles(choice)
        if smiles is None or smiles in seen:
            continue
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        if (
            molecule.GetNumAtoms() > MAX_ATOMS
            or molecule.GetNumHeavyAtoms() > MAX_HEAVY_ATOMS
            or rdDistGeom.EmbedMolecule(molecule, randomSeed=seed)
        ):
            continue
        rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)
        seen.add(smiles)
        numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
        yield Structure(numbers, molecule.GetConformer().GetPositions(), f"assembled-{smiles}")


def _random_smiles(choice: random.Random) -> str | None:
    """Canonical SMILES of a random molecule, None if the parts do not fit."""
    from rdkit import Chem

    kind = choice.random()
    if kind < 0.3:
        core = "".join(choice.choices(CHAINS, k=choice.randint(2, 5)))
        attached = choice.randint(0, 1)
    elif kind < 0.75:
        core, attached = choice.choice(RINGS), choice.randint(1, 3)
    else:
        core = ""
        first, second = choice.choices(RINGS[:12], k=2)
        # An atom of the first ring binds what follows it in parentheses.
        core = f"{first}{choice.choice(LINKERS)}{second.replace('1', '3').replace('2', '4')}"
        attached = choice.randint(0, 2)
    molecule = Chem.MolFromSmiles(core)
    for _ in range(attached):
        molecule = None if molecule is None else _substitute(molecule, choice)
    if molecule is None:
        return None
    return Chem.MolToSmiles(molecule, isomericSmiles=False)


def _substitute(molecule: Any, choice: random.Random) -> Any:
    """Put a random substituent in the place of a hydrogen of carbon or nitrogen; None if none is left."""
    from rdkit import Chem

    free = [
        atom.GetIdx()
        for atom in molecule.GetAtoms()
        if atom.GetTotalNumHs() and atom.GetAtomicNum() in (6, 7)
    ]
    if not free:
        return None
    joined = Chem.RWMol(Chem.CombineMols(molecule, Chem.MolFromSmiles(choice.choice(SUBSTITUENTS))))
    site = joined.GetAtomWithIdx(choice.choice(free))
    if site.GetNumExplicitHs():
        site.SetNumExplicitHs(site.GetNumExplicitHs() - 1)
    joined.AddBond(site.GetIdx(), molecule.GetNumAtoms(), Chem.BondType.SINGLE)
    result = joined.GetMol()
    return result if Chem.SanitizeMol(result, catchErrors=True) == 0 else None


def _distance(positions: np.ndarray, part: Sequence[int], others: Sequence[int]) -> float:
    vectors = positions[list(part), None] - positions[None, list(others)]
    return float(np.linalg.norm(vectors, axis=2).min())


def main(
    out: Annotated[Path, typer.Argument(help="npz file to write")],
    qm7: Annotated[Path | None, typer.Option(help="xyz file of QM7's relaxed molecules")] = None,
    spice: Annotated[list[Path] | None, typer.Option(help="SPICE hdf5 files")] = None,
    assembled: Annotated[int, typer.Option(help="molecules to put together")] = 3000,
    seed: Annotated[int, typer.Option(help="of the molecules put together")] = 0,
) -> None:
    """Collect geometries of wanted molecules."""
    found: list[Structure] = []
    for path in [qm7] if qm7 else []:
        found += [structure for structure in read_qm7(path) if is_wanted(structure.numbers)]
    for path in spice or []:
        found += [structure for structure in read_spice(path) if is_wanted(structure.numbers)]
    found += [s for s in assemble(assembled, seed) if is_wanted(s.numbers)]
    save_structures(found, out)
    typer.echo(f"{len(found)} geometries -> {out}")


if __name__ == "__main__":
    typer.run(main)
