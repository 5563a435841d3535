"""From a name or a file to a checked split: the one call that training makes."""

from collections.abc import Sequence
from pathlib import Path

from forcefield.errors import ConfigError, DataError
from training.datasets.ase_files import read_ase
from training.datasets.checks import (
    check_frames,
    check_no_overlap,
    drop_repeated,
    without_geometries,
)
from training.datasets.deepmd import read_deepmd
from training.datasets.frames import Frame, Reading, Split
from training.datasets.md17 import read_npz
from training.datasets.options import ReadOptions
from training.datasets.plausibility import implausible
from training.datasets.public import PublicSet, find_public_set, local_file
from training.datasets.splits import Amount, published_split, random_split, trajectory_split


def load_split(
    source: str | Path,
    *,
    split: int = 1,
    train: Amount = None,
    valid: Amount = None,
    test: Amount = None,
    seed: int = 0,
    valid_file: str | Path | None = None,
    test_file: str | Path | None = None,
    isolated_atoms_file: str | Path | None = None,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    forces_unit: str | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    allow_unusual: bool = False,
    cache_dir: str | Path | None = None,
) -> Split:
    """Load, check and divide a data set.

    Args:
        source: A public set ("rmd17:ethanol", "md17:aspirin", "ccsd:ethanol"), a file (npz in the
            layouts of MD17, or anything that ASE reads) or a folder in the layout of DeePMD-kit.
            rmd17:ethanol, split 1, needs no network.
        split: Published split of rmd17, 1 to 5.
        train: Number of training frames, or a fraction between 0 and 1. Of a published training
            file (rmd17, ccsd) 950 by default; of one's own file, what the others leave.
        valid: Likewise for validation, taken from the training part; 50, or a tenth.
        test: Likewise for the test; the whole test file, or a tenth.
        seed: Of the random choice of frames.
        valid_file: Validation frames of one's own, instead of a part of ``source``.
        test_file: Test frames of one's own, instead of a part of ``source``.
        isolated_atoms_file: Single-atom energies, if they are not in ``source``.
        energy_unit: Of one's own files: eV, meV, kcal/mol, kJ/mol, Hartree or Rydberg.
        length_unit: Angstrom, nm or Bohr.
        forces_unit: Such as "Hartree/Bohr"; energy_unit / length_unit by default.
        energy_key: Name of the energies in files that ASE reads.
        forces_key: Name of the forces in files that ASE reads.
        stress_key: Name of the stresses or virials in files that ASE reads.
        allow_unusual: Turn the refusal of units that look wrong into a warning.
        cache_dir: Where downloads are kept.

    Returns:
        The split, in eV and Å, with warnings for a person to read.

    Raises:
        DataError: The set is unknown or cannot be downloaded, the file cannot be read, a frame is
            broken (named by file and index), the units cannot be right, the same geometry is
            in two parts, an element is not in the training part, no frame has the stresses that were
            named, or more frames are asked for than there are.
        ConfigError: An unknown unit, or an option that does not apply to this source.
    """
    options = ReadOptions(energy_unit, length_unit, forces_unit, energy_key, forces_key, stress_key)
    public = find_public_set(str(source))
    if public is not None:
        _refuse_options(public, options, valid_file, test_file, isolated_atoms_file)
        return _load_public(public, split, train, valid, test, seed, cache_dir)
    if split != 1:
        raise ConfigError(f"split={split} applies to public sets; {source} is divided by seed")

    reading, warnings = _read_checked(Path(source).expanduser(), options, allow_unusual)
    if stress_key and all(frame.stress is None for frame in reading.frames):
        raise DataError("\n".join(reading.warnings))
    isolated = dict(reading.isolated_atoms)
    if isolated_atoms_file is not None:
        isolated |= _read_isolated_atoms(Path(isolated_atoms_file).expanduser(), options)
    frames, dropped = drop_repeated(reading.frames)
    warnings += dropped
    parts: dict[str, list[Frame]] = {}
    for name, file, amount in (("valid", valid_file, valid), ("test", test_file, test)):
        if file is None:
            continue
        if amount is not None:
            raise ConfigError(f"{name}={amount} and {name}_file={file} exclude each other")
        other, more = _read_checked(Path(file).expanduser(), options, allow_unusual)
        parts[name], dropped = drop_repeated(other.frames)
        warnings += more + dropped
    train_part, valid_part, test_part = random_split(
        frames, train, 0 if "valid" in parts else valid, 0 if "test" in parts else test, seed
    )
    parts = {"train": train_part, "valid": valid_part, "test": test_part} | parts
    check_no_overlap(parts)
    warnings += _check_elements(parts, isolated)
    return Split(
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"],
        source=str(source),
        isolated_atoms=isolated,
        warnings=tuple(warnings),
    )


def read_frames(path: str | Path, options: ReadOptions | None = None) -> Reading:
    """Read every frame of a file, npz or any format of ASE, or of a folder of DeePMD-kit.

    What the frames hold is not judged.

    Raises:
        DataError: The file cannot be read, or labels are missing.
        ConfigError: An unknown unit, or a key that does not apply.
    """
    path, options = Path(path).expanduser(), options or ReadOptions()
    if not path.is_dir() and path.suffix.lower() != ".npz":
        return read_ase(path, options)
    if options.energy_key or options.forces_key or options.stress_key:
        raise ConfigError(
            f"{path}: energy_key, forces_key and stress_key apply to files that ASE reads, not to npz "
            "or folders"
        )
    return read_deepmd(path, options) if path.is_dir() else read_npz(path, options)


def _read_checked(
    path: Path, options: ReadOptions, allow_unusual: bool
) -> tuple[Reading, list[str]]:
    reading = read_frames(path, options)
    if not reading.frames:
        raise DataError(
            f"{path}: only isolated atoms; give the file with the geometries as the source "
            "and this one as isolated_atoms_file"
        )
    check_frames(reading.frames)
    findings = implausible(reading)
    if findings and not allow_unusual:
        raise DataError("\n".join([*findings, "If all is as it should be: allow_unusual=true"]))
    return reading, [*reading.warnings, *findings]


def _read_isolated_atoms(path: Path, options: ReadOptions) -> dict[int, float]:
    isolated = read_frames(path, options).isolated_atoms
    if not isolated:
        raise DataError(
            f"{path}: no frame of a single atom outside a cell, so no reference energies"
        )
    return isolated


def _check_elements(parts: dict[str, list[Frame]], isolated: dict[int, float]) -> list[str]:
    """Refuse elements that training never sees; note those that have no isolated atom."""
    from ase.data import chemical_symbols

    known = _elements(parts["train"])
    for name in ("valid", "test"):
        for frame in parts[name]:
            unseen = sorted(_elements([frame]) - known)
            if unseen:
                symbols = ", ".join(chemical_symbols[z] for z in unseen)
                raise DataError(
                    f"{frame.where}: a {name} frame contains {symbols}, which no training frame does; add "
                    "some to the training frames (another seed or split may do), or leave such frames out"
                )
    without = sorted(known - isolated.keys())
    if isolated and without:
        symbols = ", ".join(chemical_symbols[z] for z in without)
        return [
            f"there are isolated atoms, but none of {symbols}: those of all elements are fitted instead, "
            "unless reference_energies gives them"
        ]
    return []


def _elements(frames: Sequence[Frame]) -> set[int]:
    return {number for frame in frames for number in frame.atomic_numbers.tolist()}


def _refuse_options(public: PublicSet, options: ReadOptions, *files: str | Path | None) -> None:
    if options != ReadOptions() or any(file is not None for file in files):
        raise ConfigError(
            f"{public.name} has its units, names and files fixed: leave out energy_unit, "
            "length_unit, forces_unit, energy_key, forces_key, stress_key, valid_file, test_file and "
            "isolated_atoms_file"
        )


def _load_public(
    public: PublicSet,
    split: int,
    train: Amount,
    valid: Amount,
    test: Amount,
    seed: int,
    cache_dir: str | Path | None,
) -> Split:
    first, *rest = (
        read_npz(local_file(remote, cache_dir), source=remote.member or remote.name).frames
        for remote in public.files(split)
    )
    pool, warnings = drop_repeated(first)
    if rest:
        testing = rest[0]
        pool, more = without_geometries(pool, testing)
        warnings += more
        parts = published_split(pool, testing, train, valid, test, seed)
    else:
        parts = trajectory_split(pool, train, valid, test, seed)
    check_frames([frame for part in parts for frame in part])
    return Split(
        *parts,
        source=public.name,
        license=public.license,
        notes=f"Cite {public.citation}",
        warnings=tuple(warnings),
    )
