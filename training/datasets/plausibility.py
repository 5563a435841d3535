"""Are the units what they are said to be? Judged by what nature fixes at any level of theory.

Four scales hardly depend on the method, so that a wrong unit (factors of 1.9 to 2600) stands out:

- the stiffness of a bond between hydrogen and another non-metal: the force on hydrogen along the
  bond falls by 20 to 50 eV/Å per Å of length, from molecules at 300 K to strongly distorted ones.
  It fixes the forces' unit, and their sign;
- the sum of the atoms' total energies, from the statistical theory of the atom with its corrections
  (J. Schwinger, Phys. Rev. A 22, 1827 (1980) and 24, 2353 (1981)), good to 2 % for organic
  molecules. All-electron energies lie on it; energies with pseudopotentials lie far nearer to
  zero, never further from it;
- the ratio of the spread of the energies to the forces, a length: about 0.05 Å for a molecule in
  thermal motion, a few Å for a crystal under strain;
- the shortest distance in units of the sum of covalent radii: 0.75 to 1.2.

Stresses, where there are some, are judged by two more: times the volume they are a few eV per atom at most
(100 GPa are about 6), and energies of frames of different volume differ by about the work of the mean
stress.
"""

from collections import defaultdict

import numpy as np

from forcefield.units import ENERGY_UNITS, HARTREE, LENGTH_UNITS
from training.datasets.frames import FloatArray, Frame, IntArray, Reading
from training.datasets.pairs import Pairs, close_pairs

_SAMPLE = 300
"""Frames looked at, spread evenly over the data: units are the same in all of them."""

FORCE_RMS_WINDOW = (0.01, 30.0)
"""eV/Å per component."""
STIFFNESS_WINDOW = (10.0, 120.0)
"""eV/Å²; slope of the force on H along an X-H bond."""
LENGTH_WINDOW = (0.003, 20.0)
"""Å; spread of energies at one composition over (RMS force times sqrt(3 n / 2))."""
CONTACT_WINDOW = (0.55, 1.45)
"""Median over frames of the shortest distance over the sum of covalent radii."""

MOST_STRAIN_ENERGY = 15.0
"""eV per atom; median of a stress's root mean square times the volume."""
VOLUME_SPREAD = 0.005
"""Relative standard deviation of the volumes from which on stresses and energies can be compared."""
STRESS_UNITS = {
    "GPa": 0.00624151,
    "kbar": 0.000624151,
    "Hartree/Bohr^3": 183.631,
    "Ry/Bohr^3": 91.8156,
}
"""eV/Å³."""

_FORCE_UNITS = {
    f"{energy}/{length}": ENERGY_UNITS[energy] / LENGTH_UNITS[length]
    for energy in ENERGY_UNITS
    for length in ("Angstrom", "Bohr")
}
_NON_METALS = (5, 6, 7, 8, 9, 14, 15, 16, 17)
_NOBLE_GASES = (2, 10, 18, 36, 54, 86)
_TYPICAL_STIFFNESS = 32.0
_MIN_BONDS = 50


def implausible(reading: Reading) -> list[str]:
    """What cannot be right about the units in which a file was read.

    Args:
        reading: Frames that passed :func:`training.datasets.checks.check_frames`, with the sizes of
            the units that they were taken to be in.

    Returns:
        One sentence for each finding; empty if all is plausible.
    """
    molecules = [frame for frame in reading.frames if len(frame.atomic_numbers) > 1]
    frames = molecules[:: max(1, -(-len(molecules) // _SAMPLE))]
    if not frames:
        return []
    source = frames[0].source or "the frames"
    contact = _contact_finding(frames, reading.length_unit)
    if contact:  # Nothing else can be judged with the wrong length.
        return [f"{source}: {contact}"]
    findings = [
        _energy_finding(frames, reading.energy_unit),
        _force_finding(frames, reading.forces_unit),
        _spread_finding(frames),
        _stress_finding(frames),
    ]
    return [f"{source}: {finding}" for finding in findings if finding]


def all_electron_energy(atomic_numbers: IntArray) -> float:
    """Sum of the atoms' total energies, eV, good to 4 % from Li on and to 10 % for H and He."""
    z = np.asarray(atomic_numbers, dtype=np.float64)
    hartree = -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)
    return float(hartree.sum() * HARTREE)


def _contact_finding(frames: list[Frame], unit: float) -> str | None:
    from ase.data import covalent_radii

    if all(np.isin(frame.atomic_numbers, _NOBLE_GASES).all() for frame in frames):
        return None  # Held together by dispersion, far outside their covalent radii.
    largest = max(covalent_radii[frame.atomic_numbers].max() for frame in frames)
    pairs = close_pairs(frames, 1.01 * CONTACT_WINDOW[1] * 2 * largest)
    first, second, _ = _elements(frames, pairs)
    ratio = pairs.distance / (covalent_radii[first] + covalent_radii[second])
    shortest = np.full(len(frames), np.inf)
    np.minimum.at(shortest, pairs.frame, ratio)
    median = float(np.median(shortest))
    if _inside(median, CONTACT_WINDOW):
        return None
    times = f"{median:.2g} times" if np.isfinite(median) else f"over {CONTACT_WINDOW[1]} times"
    # Bonds are somewhat shorter than the radii say, at the short end of their vibration.
    fitting = _nearest_units(unit * 0.9 / median, LENGTH_UNITS)
    hint = f"; {fitting[0]} would fit (length_unit={fitting[0]})" if fitting else ""
    return (
        f"the closest atoms are {times} as far apart as bonded atoms are: the positions "
        f"were read in the wrong unit{hint}. State length_unit"
    )


def _energy_finding(frames: list[Frame], unit: float) -> str | None:
    expected = [all_electron_energy(frame.atomic_numbers) for frame in frames]
    ratio = float(np.median([f.energy / e for f, e in zip(frames, expected, strict=True)]))
    light = max(int(frame.atomic_numbers.max()) for frame in frames) <= 10
    # Read in unit u, an energy that is in unit v comes out u / v times too large.
    matching = [
        name
        for name in ("eV", "kcal/mol", "kJ/mol", "Hartree")
        if (other := ENERGY_UNITS[name]) != unit and abs(ratio * other / unit - 1) < 0.04
    ]
    per_atom = float(np.median([f.energy / len(f.atomic_numbers) for f in frames]))
    found = f"the energies are {per_atom:.6g} eV per atom in the median"
    if ratio > 1.5:
        hint = f"; they fit {matching[0]} (energy_unit={matching[0]})" if matching else ""
        return (
            f"{found}, {ratio:.3g} times the total energies of the atoms with all their electrons, "
            f"beyond which no method goes{hint}"
        )
    # Below the all-electron energies, pseudopotentials of heavy elements could match by chance.
    if matching and light:
        return (
            f"{found}; read in {matching[0]} they would be the all-electron total energies of "
            f"these atoms. State energy_unit={matching[0]} if that is what they are"
        )
    return None


def _force_finding(frames: list[Frame], unit: float) -> str | None:
    forces = np.concatenate([frame.forces for frame in frames])
    rms = float(np.sqrt((forces**2).mean()))
    if rms == 0.0:
        return "all forces are zero; name the right ones with forces_key, or compute them"
    slope = _hydrogen_stiffness(frames, forces)
    if slope is not None and slope < -STIFFNESS_WINDOW[0] / 10:
        return (
            "the forces push stretched bonds further apart: these are gradients, dE/dr; "
            "change their sign"
        )
    if slope is not None and slope > 0 and not _inside(slope, STIFFNESS_WINDOW):
        fitting = _nearest_units(unit * _TYPICAL_STIFFNESS / slope, _FORCE_UNITS)
        hint = f"; forces in {' or '.join(fitting[:3])} would fit" if fitting else ""
        return (
            f"bonds to hydrogen have a stiffness of {slope:.3g} eV/Å² by these forces (about "
            f"{_TYPICAL_STIFFNESS:.0f} in nature): they were read in the wrong unit{hint}. "
            "State forces_unit, or energy_unit and length_unit"
        )
    if not _inside(rms, FORCE_RMS_WINDOW):
        return (
            f"the RMS force component is {rms:.3g} eV/Å, outside {FORCE_RMS_WINDOW[0]} to "
            f"{FORCE_RMS_WINDOW[1]}; state the unit of the forces (forces_unit)"
        )
    return None


def _hydrogen_stiffness(frames: list[Frame], forces: FloatArray) -> float | None:
    """How fast the force on H falls along X-H bonds, eV/Å²; None if the frames do not show it."""
    from ase.data import covalent_radii

    pairs = close_pairs(frames, 2.0)
    first, second, start = _elements(frames, pairs)
    hydrogen_first = first == 1
    partner = np.where(hydrogen_first, second, first)
    bond = (hydrogen_first != (second == 1)) & np.isin(partner, _NON_METALS)
    bond &= pairs.distance < 1.3 * (covalent_radii[first] + covalent_radii[second])
    if bond.sum() < _MIN_BONDS:
        return None
    hydrogen = start + np.where(hydrogen_first, pairs.i, pairs.j)
    outward = np.where(hydrogen_first, -1.0, 1.0)[:, None] * pairs.vector / pairs.distance[:, None]
    along = (forces[hydrogen] * outward).sum(axis=1)[bond]
    length, partner = pairs.distance[bond], partner[bond]
    # Each element has its own bond length: only the variation about it counts.
    covariance = variance = force_variance = 0.0
    for number in np.unique(partner):
        own = partner == number
        d, f = length[own] - length[own].mean(), along[own] - along[own].mean()
        covariance += float((d * f).sum())
        variance += float((d * d).sum())
        force_variance += float((f * f).sum())
    spread = np.sqrt(variance / len(length))
    if spread < 0.005 or force_variance == 0.0:
        return None
    if abs(covariance) < 0.6 * np.sqrt(variance * force_variance):
        return None
    return -covariance / variance


def _same_composition(frames: list[Frame]) -> list[list[Frame]]:
    """Frames of the same composition, where there are at least ten."""
    groups: dict[bytes, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[np.sort(frame.atomic_numbers).tobytes()].append(frame)
    return [group for group in groups.values() if len(group) >= 10]


def _spread_finding(frames: list[Frame]) -> str | None:
    lengths = []
    for group in _same_composition(frames):
        rms = np.sqrt(np.mean([(frame.forces**2).mean() for frame in group]))
        spread = np.std([frame.energy for frame in group])
        if rms > 0:
            lengths.append(spread / (rms * np.sqrt(1.5 * len(group[0].atomic_numbers))))
    if not lengths or _inside(float(np.median(lengths)), LENGTH_WINDOW):
        return None
    return (
        f"the energies of one composition spread by {float(np.median(lengths)):.2g} Å times its "
        f"forces ({LENGTH_WINDOW[0]} to {LENGTH_WINDOW[1]} Å in nature): energies and forces are "
        "not in matching units, or do not belong to the same frames"
    )


def _stress_finding(frames: list[Frame]) -> str | None:
    labelled = [f for f in frames if f.stress is not None and f.cell is not None and f.pbc.all()]
    if not labelled:
        return None
    per_atom = [
        np.linalg.norm(frame.stress) / 3.0 * _volume(frame) / len(frame.atomic_numbers)
        for frame in labelled
        if frame.stress is not None
    ]
    strain = float(np.median(per_atom))
    if strain > MOST_STRAIN_ENERGY:
        return (
            f"stress times volume is {strain:.3g} eV per atom in the median, and about 6 at 100 GPa: the "
            "stresses were read in the wrong unit; they have to be in eV/Å³ (1 GPa = 0.00624151, "
            "1 kbar = 0.000624151)"
        )
    for group in _same_composition(labelled):
        work, change = _work_of_stress(group)
        if len(work) < 15 or work.std() == 0.0 or change.std() == 0.0:
            continue
        correlation = float(np.corrcoef(work, change)[0, 1])
        if correlation < -0.7:
            return (
                "the energy falls where the stresses say that it rises with the volume: they have the "
                "opposite sign; a stress here is dE/dstrain over the volume, positive under tension "
                "(VASP's is the opposite), and a virial is minus that times the volume"
            )
        factor = float((work * change).sum() / (work * work).sum())
        if correlation > 0.9 and not 1 / 3 < factor < 3:
            fitting = _nearest_units(factor, STRESS_UNITS)
            hint = f" ({fitting[0]} would fit)" if fitting else ""
            return (
                f"the energy changes with the volume by {factor:.2g} times what the stresses say: they "
                f"were read in the wrong unit{hint}; they have to be in eV/Å³"
            )
    return None


def _work_of_stress(group: list[Frame]) -> tuple[FloatArray, FloatArray]:
    """What pairs of frames of different volume differ in energy by, by their stresses and in truth, eV."""
    volumes = np.array([_volume(frame) for frame in group])
    if volumes.std() < VOLUME_SPREAD * volumes.mean():
        return np.empty(0), np.empty(0)
    order, half = np.argsort(volumes), len(group) // 2
    a, b = order[:half], order[half : 2 * half]
    tension = np.array([np.trace(f.stress) / 3.0 if f.stress is not None else 0.0 for f in group])
    energies = np.array([frame.energy for frame in group])
    work = 0.5 * (tension[a] + tension[b]) * (volumes[b] - volumes[a])
    return work, energies[b] - energies[a]


def _volume(frame: Frame) -> float:
    assert frame.cell is not None
    return float(abs(np.linalg.det(frame.cell)))


def _elements(frames: list[Frame], pairs: Pairs) -> tuple[IntArray, IntArray, IntArray]:
    """Elements of both atoms of each pair, and where its frame starts in the joined arrays."""
    numbers = np.concatenate([frame.atomic_numbers for frame in frames])
    atoms = [len(frame.atomic_numbers) for frame in frames]
    start = np.concatenate([[0], np.cumsum(atoms)[:-1]])[pairs.frame]
    return numbers[start + pairs.i], numbers[start + pairs.j], start


def _nearest_units(size: float, units: dict[str, float]) -> list[str]:
    """Units within a factor of 1.6 of a size, the nearest first."""
    if size <= 0.0:
        return []
    off = {name: abs(float(np.log(size / unit))) for name, unit in units.items()}
    return [name for name in sorted(off, key=off.__getitem__) if off[name] < np.log(1.6)]


def _inside(value: float, window: tuple[float, float]) -> bool:
    return window[0] <= value <= window[1]
