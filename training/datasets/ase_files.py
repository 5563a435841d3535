"""Reader for every format that ASE reads: extxyz, db, traj, OUTCAR and the rest.

Energies, forces and stresses are those that ASE attaches to a structure; where a file keeps them under
another name (``REF_energy``, ``dft_forces`` ...), the user gives the name. Values are taken to be
in eV and Å, as ASE gives them, unless the user states other units: extxyz files exist in kcal/mol
and in Hartree.

Frames of a single atom in vacuum are not training data but reference energies, and are kept apart.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from forcefield.errors import DataError
from training.datasets.frames import FloatArray, Frame, Reading, add_isolated
from training.datasets.options import ReadOptions

if TYPE_CHECKING:
    from ase import Atoms

_T = TypeVar("_T")

_SHOWN = 8
"""Frames named one by one in a message; the rest are counted."""

_STATES = ("charge", "total_charge", "spin", "multiplicity", "spin_multiplicity")
"""Names under which files keep what no geometry tells."""


def read_ase(path: Path, options: ReadOptions | None = None) -> Reading:
    """Read every frame of a file with ASE.

    Args:
        path: The file.
        options: Units and the names of the labels, where ASE's own do not apply.

    Raises:
        DataError: ASE cannot read the file, it holds no frames, a frame has no energy or no forces,
            or an element has two different energies as an isolated atom.
        ConfigError: An unknown unit.
    """
    options = options or ReadOptions()
    energy_scale, length_scale, forces_scale = options.scales("eV", "Angstrom")
    structures = _structures(path)
    if not structures:
        raise DataError(f"{path}: ASE finds no structures in this file")

    frames: list[Frame] = []
    isolated: dict[int, float] = {}
    missing: dict[str, list[int]] = {"energy": [], "forces": []}
    for index, atoms in enumerate(structures):
        labels = _labels(atoms)
        energy = _find(labels, options.energy_key, "energy", _as_energy)
        forces = _find(labels, options.forces_key, "forces", _forces_reader(len(atoms)))
        if _is_isolated_atom(atoms):
            if energy is None:
                missing["energy"].append(index)
            else:
                where = f"{path}, frame {index}"
                add_isolated(isolated, int(atoms.numbers[0]), energy * energy_scale, where)
            continue
        if energy is None:
            missing["energy"].append(index)
        if forces is None:
            missing["forces"].append(index)
        if energy is None or forces is None:
            continue
        periodic = np.array(atoms.pbc, dtype=bool)
        stress = _stress(atoms, labels, options.stress_key) if _has_volume(atoms) else None
        frames.append(
            Frame(
                atomic_numbers=atoms.numbers.astype(np.int64),
                positions=atoms.positions.astype(np.float64) * length_scale,
                energy=energy * energy_scale,
                forces=forces * forces_scale,
                cell=np.array(atoms.cell) * length_scale if periodic.any() else None,
                pbc=periodic,
                stress=None if stress is None else stress * energy_scale / length_scale**3,
                index=index,
                source=str(path),
            )
        )
    if any(missing.values()):
        raise DataError(_missing_message(path, options, missing, structures))
    warnings: list[str] = []
    if frames and all(frame.stress is None for frame in frames):
        names = _names_of_stresses(structures)
        advice = f"it holds {', '.join(names)}: name the right one with stress_key=..."
        if options.stress_key:
            missing_stress = f"no periodic frame has a stress under the name '{options.stress_key}'"
            warnings.append(f"{path}: {missing_stress}" + (f"; {advice}" if names else ""))
        elif names:
            warnings.append(f"{path}: no stresses are learned, but {advice}")
    if options.forces_key and _sounds_like_gradient(options.forces_key):
        warnings.append(
            f"{path}: {options.forces_key} is learned as the forces; a gradient is minus the force"
        )
    warnings += [f"{path}: {text}" for text in _mixed_states(structures)]
    return Reading(frames, isolated, energy_scale, length_scale, forces_scale, tuple(warnings))


def _structures(path: Path) -> "list[Atoms]":
    """All structures of the file."""
    import ase.db
    import ase.io

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix == ".db":
            with ase.db.connect(path, serial=True) as database:
                return [row.toatoms(add_additional_information=True) for row in database.select()]
        # ASE would take what follows an @ in a name for a choice of frames.
        return list(ase.io.iread(path, index=":", do_not_split_by_at_sign=True))
    except Exception as error:  # ASE's readers raise whatever their parsing meets.
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(
            f"{path}: ASE cannot read this file ({detail}). Is it complete, and does its name end "
            "in its format (.extxyz, .xyz, .db, .traj ...)?"
        ) from error


def _labels(atoms: "Atoms") -> dict[str, Any]:
    """Everything attached to a structure by name; the calculator's results come first."""
    info = dict(atoms.info)
    labels: dict[str, Any] = {}
    for nested in ("data", "key_value_pairs"):  # Where a row of an ASE database keeps its own.
        value = info.pop(nested, None)
        if isinstance(value, dict):
            labels.update(value)
    labels.update(info)
    labels.update({k: v for k, v in atoms.arrays.items() if k not in {"numbers", "positions"}})
    if atoms.calc is not None:
        labels.update({k: v for k, v in atoms.calc.results.items() if v is not None})
    return labels


def _find(
    labels: dict[str, Any], key: str | None, default: str, convert: Callable[[Any], _T | None]
) -> _T | None:
    name = key or default
    return convert(labels[name]) if name in labels else None


def _as_energy(value: Any) -> float | None:
    """A number, also as an array of one; None for anything else."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return float(array.reshape(())) if array.size == 1 else None


def _forces_reader(num_atoms: int) -> Callable[[Any], FloatArray | None]:
    def as_forces(value: Any) -> FloatArray | None:
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            return None
        return array if array.shape == (num_atoms, 3) else None

    return as_forces


def _stress(atoms: "Atoms", labels: dict[str, Any], key: str | None) -> FloatArray | None:
    """The stress as (3, 3), in the file's units; a virial is minus the stress times the volume."""
    value = _find(labels, key, "stress", _as_stress)
    if value is None or key is None or not _is_virial(key):
        return value
    return -value / atoms.get_volume()


def _has_volume(atoms: "Atoms") -> bool:
    return bool(atoms.pbc.any()) and atoms.cell.rank == 3


def _as_stress(value: Any) -> FloatArray | None:
    """A symmetric matrix from ASE's Voigt order or all nine components; None for anything else."""
    from ase.stress import voigt_6_to_full_3x3_stress

    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if array.shape == (6,):
        return np.asarray(voigt_6_to_full_3x3_stress(array))
    return array.reshape(3, 3) if array.shape in {(9,), (3, 3)} else None


def _is_virial(name: str) -> bool:
    return "virial" in name.lower()


def _names_of_stresses(structures: "list[Atoms]") -> list[str]:
    """Under which names periodic structures keep what looks like a stress or a virial."""
    names: dict[str, None] = {}
    for atoms in structures:
        if _has_volume(atoms) and not _is_isolated_atom(atoms):
            for name, value in _labels(atoms).items():
                sounds = "stress" in name.lower() or _is_virial(name)
                if sounds and _as_stress(value) is not None:
                    names[name] = None
    return list(names)


def _is_isolated_atom(atoms: "Atoms") -> bool:
    """A single atom that is marked as isolated, or that no cell repeats."""
    if len(atoms) != 1:
        return False
    mark = str(_labels(atoms).get("config_type", "")).lower().replace("_", "").replace("-", "")
    return mark == "isolatedatom" or not atoms.pbc.any()


def _missing_message(
    path: Path, options: ReadOptions, missing: dict[str, list[int]], structures: "list[Atoms]"
) -> str:
    """Which labels are missing where, and under which names the file might keep them."""
    parts = []
    for label, indices in missing.items():
        if not indices:
            continue
        key = getattr(options, f"{label}_key")
        named = f"{label} under the name '{key}'" if key else label
        atoms = structures[indices[0]]
        convert = _as_energy if label == "energy" else _forces_reader(len(atoms))
        names = _candidates(label, _labels(atoms), convert)
        if label == "forces":
            warned = " (a gradient is minus the force)"
            names = [name + warned * _sounds_like_gradient(name) for name in names]
        advice = (
            f"it holds {', '.join(names)}: name the right one with {label}_key=..."
            if names
            else "nothing else there has the shape of one; compute it, or leave the frame out"
        )
        parts.append(f"{path}, {_frame_list(indices)}: no {named}; {advice}")
    return "\n".join(parts)


def _candidates(label: str, labels: dict[str, Any], convert: Callable[[Any], Any]) -> list[str]:
    """Names whose values have the label's shape; only those that sound like it, if any do."""
    names = [
        name
        for name, value in labels.items()
        if not isinstance(value, (str, bool, np.bool_)) and convert(value) is not None
    ]
    sounds = ("ener",) if label == "energy" else ("forc", "grad")
    return [name for name in names if any(s in name.lower() for s in sounds)] or names


def _sounds_like_gradient(name: str) -> bool:
    return "grad" in name.lower()


def _mixed_states(structures: "list[Atoms]") -> list[str]:
    """What a person should know if frames of one composition differ in charge or spin."""
    states: dict[tuple[bytes, str], set[int]] = {}
    for atoms in structures:
        labels = _labels(atoms)
        for name in _STATES:
            value = labels.get(name)
            if not isinstance(value, (int, float, np.integer, np.floating)):
                continue
            # Computed populations are not what the frame was computed for: those are whole numbers.
            if np.isfinite(value) and abs(value - round(value)) < 1e-3:
                composition = np.sort(atoms.numbers).tobytes()
                states.setdefault((composition, name), set()).add(round(value))
    differing = {name: values for (_, name), values in states.items() if len(values) > 1}
    return [
        f"frames of one composition differ in {name} ({', '.join(map(str, sorted(values)))}): the "
        "network sees geometries only, train a potential for each"
        for name, values in differing.items()
    ]


def _frame_list(indices: list[int]) -> str:
    shown = ", ".join(str(i) for i in indices[:_SHOWN])
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return f"frame{'s' if len(indices) > 1 else ''} {shown}{more}"
