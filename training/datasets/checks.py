"""Checks of every frame before any training: what is broken is named by file and frame.

Findings are collected, so that one run shows all that is wrong with a file. Units are judged in
:mod:`training.datasets.plausibility`.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from forcefield.errors import DataError
from training.datasets.frames import Frame
from training.datasets.pairs import close_pairs

MIN_DISTANCE = 0.3
"""Å; no two nuclei of a molecule or a material come this close (H2 has 0.74 Å)."""

_BROKEN = "remove this frame or compute it again"
_SHOWN = 10
"""Findings written out; the rest are counted."""
_ROUNDING = 1e-4
"""Å; frames that agree to this are the same geometry."""
_SAME_ENERGY = 1e-3
"""eV; a repeated geometry whose energies differ by more than this has contradictory labels."""


def check_frames(frames: Sequence[Frame]) -> None:
    """Refuse frames on which nothing can be trained.

    Raises:
        DataError: Names every frame (up to ten, then their number) with arrays of the wrong shape,
            an impossible atomic number, a value that is not finite, a periodic direction without
            a cell vector, or two atoms on top of each other.
    """
    if not frames:
        raise DataError("there are no frames to train on")
    findings = [text for frame in frames for text in _shape_findings(frame)]
    _raise_if_any(findings)  # What follows needs arrays that fit together.
    findings = [*_not_finite(frames), *_singular_cells(frames)]
    _raise_if_any(findings)
    _raise_if_any(_clashes(frames))


def check_no_overlap(parts: Mapping[str, Sequence[Frame]]) -> None:
    """Refuse a split in which two parts hold the same geometry.

    Args:
        parts: Frames by the name of their part.

    Raises:
        DataError: Names the frames that recur.
    """
    seen: dict[bytes, tuple[str, Frame]] = {}
    findings = []
    for part, frames in parts.items():
        own: dict[bytes, tuple[str, Frame]] = {}
        for frame in frames:
            key = geometry_key(frame)
            if key in seen:
                other_part, other = seen[key]
                findings.append(
                    f"{frame.where} ({part}) has the geometry of {other.where} ({other_part})"
                )
            own[key] = (part, frame)
        seen.update(own)
    if findings:
        findings.append(
            "errors measured on frames that were trained on mean nothing: remove them from one part"
        )
    _raise_if_any(findings, closing=1)


def drop_repeated(frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """Keep the first of every geometry, so that no copy can reach another part of a split.

    Returns:
        The frames kept, in order, and a warning if any were dropped.
    """
    first: dict[bytes, Frame] = {}
    repeated: list[tuple[Frame, Frame]] = []
    for frame in frames:
        original = first.setdefault(geometry_key(frame), frame)
        if original is not frame:
            repeated.append((frame, original))
    if not repeated:
        return list(frames), []
    copies = ", ".join(f"{copy.index} (of {of.index})" for copy, of in repeated[:_SHOWN])
    more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
    text = f"{frames[0].source}: {len(repeated)} repeated frames were left out: {copies}{more}"
    differing = sum(abs(copy.energy - of.energy) > _SAME_ENERGY for copy, of in repeated)
    if differing:
        text += f"; {differing} of them have another energy than the frame they repeat"
    return list(first.values()), [text]


def without_geometries(
    frames: Sequence[Frame], held_out: Sequence[Frame]
) -> tuple[list[Frame], list[str]]:
    """Leave out the frames whose geometry recurs among others that are published as the test.

    Returns:
        The frames kept, in order, and a warning if any were dropped.
    """
    keys = {geometry_key(frame) for frame in held_out}
    kept = [frame for frame in frames if geometry_key(frame) not in keys]
    if len(kept) == len(frames):
        return kept, []
    return kept, [
        f"{frames[0].source}: {len(frames) - len(kept)} frames recur in {held_out[0].source} "
        "and were left out of training"
    ]


def geometry_key(frame: Frame) -> bytes:
    """A digest that is the same for frames with the same elements, positions and cell."""
    digest = hashlib.blake2b(
        np.asarray(frame.atomic_numbers, dtype=np.int64).tobytes(), digest_size=16
    )
    digest.update(np.rint(frame.positions / _ROUNDING).astype(np.int64).tobytes())
    if frame.cell is not None:
        digest.update(np.rint(frame.cell / _ROUNDING).astype(np.int64).tobytes())
    return digest.digest()


def _raise_if_any(findings: list[str], closing: int = 0) -> None:
    """Raise one error with the first findings; the last ``closing`` lines are always shown."""
    if not findings:
        return
    end = len(findings) - closing
    lines = findings[: min(_SHOWN, end)]
    if end > _SHOWN:
        lines.append(f"and {end - _SHOWN} more of this kind")
    raise DataError("\n".join(lines + findings[end:]))


def _shape_findings(frame: Frame) -> list[str]:
    numbers = frame.atomic_numbers
    expected = (len(numbers), 3)
    findings = []
    if len(numbers) == 0:
        findings.append(f"{frame.where}: there are no atoms; remove this frame")
    elif numbers.min() < 1 or numbers.max() > 118:
        bad = int(np.flatnonzero((numbers < 1) | (numbers > 118))[0])
        findings.append(f"{frame.where}: atom {bad} has the atomic number {numbers[bad]}")
    for name, array in (("positions", frame.positions), ("forces", frame.forces)):
        if array.shape != expected:
            findings.append(
                f"{frame.where}: {name} have shape {array.shape}, "
                f"but {len(numbers)} atoms need {expected}"
            )
    for name, matrix in (("cell", frame.cell), ("stress", frame.stress)):
        if matrix is not None and matrix.shape != (3, 3):
            findings.append(f"{frame.where}: the {name} has shape {matrix.shape}, not (3, 3)")
    return findings


def _not_finite(frames: Sequence[Frame]) -> list[str]:
    """Findings on NaN and infinity, from one pass over the joined arrays."""
    findings = []
    atoms = np.array([len(frame.atomic_numbers) for frame in frames])
    starts = np.concatenate([[0], np.cumsum(atoms)])
    for name in ("positions", "forces"):
        joined = np.concatenate([getattr(frame, name) for frame in frames])
        rows = np.flatnonzero(~np.isfinite(joined).all(axis=1))
        owners = np.searchsorted(starts, rows, side="right") - 1
        for owner, first in zip(*np.unique(owners, return_index=True), strict=True):
            row = rows[first]
            findings.append(
                f"{frames[owner].where}: the {name} of atom {row - starts[owner]} are "
                f"{joined[row]}; {_BROKEN}"
            )
    for frame in frames:
        if not np.isfinite(frame.energy):
            findings.append(f"{frame.where}: the energy is {frame.energy}; {_BROKEN}")
        for name, matrix in (("cell", frame.cell), ("stress", frame.stress)):
            if matrix is not None and not np.isfinite(matrix).all():
                findings.append(f"{frame.where}: the {name} is not finite; {_BROKEN}")
    return findings


def _singular_cells(frames: Sequence[Frame]) -> list[str]:
    findings = []
    for frame in frames:
        if not frame.pbc.any():
            continue
        vectors = np.zeros((3, 3)) if frame.cell is None else frame.cell
        periodic = vectors[frame.pbc]
        if np.linalg.matrix_rank(periodic, tol=1e-6) < len(periodic):
            findings.append(
                f"{frame.where}: periodic along {np.flatnonzero(frame.pbc).tolist()}, but the cell "
                f"vectors there are {periodic.tolist()}; give the cell, or set pbc to F"
            )
    return findings


def _clashes(frames: Sequence[Frame]) -> list[str]:
    pairs = close_pairs(frames, MIN_DISTANCE)
    findings = []
    owners, first = np.unique(pairs.frame, return_index=True)
    for owner, pair in zip(owners, first, strict=True):
        i, j = pairs.i[pair], pairs.j[pair]
        who = f"atoms {i} and {j} are" if i != j else f"atom {i} and its periodic image are"
        findings.append(
            f"{frames[owner].where}: {who} {pairs.distance[pair]:.3f} Å apart; remove this frame"
        )
    if len(findings) > len(frames) // 2:
        findings.append("most frames are like this: are the positions in nm (length_unit=nm)?")
        _raise_if_any(findings, closing=1)
    return findings
