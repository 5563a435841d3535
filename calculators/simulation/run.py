"""One simulation, from the first step or from a checkpoint to a folder with everything in it."""

import contextlib
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from calculators.simulation.checkpoint import Checkpoint
from calculators.simulation.engine import Sample
from calculators.simulation.folder import SimulationFolder, alone_in, check_new
from calculators.simulation.plots import write_plot
from calculators.simulation.record import read_energies
from calculators.simulation.resume import check_continuation
from calculators.simulation.settings import SimulationSettings
from calculators.simulation.stability import Bonds
from calculators.simulation.start import Run, begin, load_potential, reopen, threads
from calculators.simulation.structure import prepare_structure, read_structure
from calculators.simulation.summary import summarize
from forcefield.display import Display, Progress, make_display
from forcefield.errors import EngineError, ForceFieldError, NonFiniteForceError
from forcefield.files import write_json, write_with
from forcefield.interrupt import StopRequest

SECONDS_BETWEEN_LINES = 10.0

PIECE = 0.5
"""Seconds of integration between two looks at signals."""


@dataclass(frozen=True)
class SimulationResult:
    """What :func:`simulate` leaves.

    Attributes:
        folder: Paths of the files.
        summary: Contents of summary.json.
    """

    folder: SimulationFolder
    summary: dict[str, Any]

    @property
    def outcome(self) -> str:
        """complete, interrupted, collapsed (and told to stop there) or failed."""
        return str(self.summary["outcome"])


@dataclass(frozen=True)
class _End:
    """How the steps ended: outcome, and for a failure its sentence and time in ps."""

    outcome: str
    failure: str | None = None
    time: float | None = None


def simulate(
    settings: SimulationSettings,
    out: str | Path,
    *,
    structure: Atoms | None = None,
    bonds: Bonds | None = None,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
    plot: bool = True,
) -> SimulationResult:
    """Run a simulation.

    Args:
        settings: What to do, from :func:`calculators.simulation.make_settings`.
        out: Folder that receives the files.
        structure: Where to start, instead of the file that the settings name.
        bonds: Pairs and reference lengths by which stability is judged; by default the bonds of the
            starting structure.
        resume: Continue the run in the folder from its last checkpoint.
        overwrite: Replace a run in the folder. Files that no run left there are never replaced.
        show_progress: Show time, temperature and speed on the screen.
        plot: Draw plot.png, where matplotlib is installed.

    Returns:
        The summary, also of a run that ended because the forces were no longer usable (``outcome``
        failed): everything before is written.

    Raises:
        ConfigError: The folder holds a run already, or files of something else or of the input that
            would be replaced; or the settings do not fit the structure, or not the run that is to be
            continued.
        CheckpointError: The potential or the checkpoint cannot be read.
        UnknownElementError, InvalidStructureError, NonFiniteForceError: Found before the first step.
        EngineError: Likewise, or the engine itself failed on the way (a GPU out of memory); ``resume`` goes
            on from the last checkpoint then.
    """
    folder = SimulationFolder(Path(out))
    with contextlib.ExitStack() as held:

        def hold() -> None:
            held.enter_context(alone_in(folder))

        begun = folder.path.is_dir()
        if begun:
            hold()
        if resume:
            check_continuation(folder, settings)
            atoms = Checkpoint.load(folder.checkpoint).atoms
        else:
            inputs = [name for name in (settings.potential, settings.structure) if name]
            check_new(folder, inputs, overwrite)
            if structure is None:
                structure = read_structure(Path(settings.structure))
            atoms = prepare_structure(structure, settings)
        potential = load_potential(settings)
        held.enter_context(threads(settings, len(atoms)))
        if resume:
            run = reopen(settings, folder, potential)
        else:
            run = begin(settings, folder, atoms, bonds, potential, None if begun else hold)
        display = make_display(SECONDS_BETWEEN_LINES) if show_progress else None
        try:
            end = _advance(run, display)
        finally:
            run.record.close()
            if display is not None:
                display.close()
        return _finish(run, end, plot)


def _advance(run: Run, display: Display | None) -> _End:
    """Take the steps that are left."""
    settings, engine, record = run.settings, run.engine, run.record
    stop = StopRequest("these steps")
    now = shown = saved = time.monotonic()
    piece = 1
    with stop.listening():
        while engine.step < settings.steps:
            begun, before = time.monotonic(), engine.step
            target = (before // settings.every + 1) * settings.every
            try:
                engine.advance(min(piece, target - before))
                if engine.step == target:
                    run.last = _sample(run)
                    record.add(run.last)
            except EngineError:
                raise  # A lost GPU says nothing about the molecule; --resume goes on.
            except ForceFieldError as error:
                _keep_failed(run)
                sentence = " ".join(str(error).split())
                return _End("failed", sentence, engine.step * settings.timestep)
            now = time.monotonic()
            run.pace.measure(engine.step - before, now - begun)
            piece = max(1, int(PIECE / max(1e-6, run.pace.seconds) * run.pace.steps))
            if record.collapsed and settings.stop_at_collapse:
                run.save_checkpoint()
                return _End("collapsed")
            if stop.requested:
                run.save_checkpoint()
                return _End("interrupted")
            if now - saved > settings.checkpoint:
                run.save_checkpoint()
                saved = time.monotonic()
            if display is not None and now - shown > display.interval:
                _show(run, display)
                shown = now
    run.save_checkpoint()
    if display is not None and shown < now:
        _show(run, display)
    return _End("complete")


def _sample(run: Run) -> Sample:
    sample = run.engine.sample()
    if not sample.is_finite():
        raise NonFiniteForceError(
            "positions or energies are not finite: the structure has left the domain of the potential"
        )
    return sample


def _show(run: Run, display: Display) -> None:
    settings = run.settings
    ms = run.pace.ms_per_step
    left = None if ms is None else 1e-3 * ms * (settings.steps - run.engine.step)
    done, total = run.engine.step * settings.timestep, settings.steps * settings.timestep
    speed = run.pace.ns_per_day(settings.timestep)
    state = f"{run.record.temperature:.0f} K" + ("" if speed is None else f" · {speed:.3g} ns/day")
    display.update(Progress(done / total, f"{done:.2f} of {total:g} ps", state, left))
    run.record.flush()


def _keep_failed(run: Run) -> None:
    """The structure in which the run failed, if the engine still has it."""
    with contextlib.suppress(Exception):  # it is what is broken that is asked
        state = run.engine.state()
        if np.isfinite(state.positions).all():
            _write_structure(run, run.folder.failed, state.positions, state.cell, None)


def _write_structure(
    run: Run,
    path: Path,
    positions: np.ndarray,
    cell: np.ndarray | None,
    velocities: np.ndarray | None,
) -> None:
    from ase.io import write

    atoms = run.atoms.copy()
    atoms.set_positions(positions)
    if cell is not None:
        atoms.set_cell(cell)
    if velocities is not None:
        atoms.set_velocities(velocities)
    elif atoms.has("momenta"):
        del atoms.arrays["momenta"]  # Those of the start.
    write_with(path, lambda temporary: write(temporary, atoms, format="extxyz"))


def _finish(run: Run, end: _End, plot: bool) -> SimulationResult:
    """The last structure, the summary and the plot."""
    folder, last = run.folder, run.last
    _write_structure(run, folder.final, last.positions, last.cell, last.velocities)
    rows = read_energies(folder.energies)
    summary = summarize(run.settings, run.atoms, rows, run.pace, end.outcome, end.failure, end.time)
    write_json(folder.summary, summary)
    if plot and find_spec("matplotlib") is not None:  # a simulation does without
        verdict = summary["stability"]["verdict"]
        bins = (run.record.edges, run.record.counts)
        write_plot(folder.plot, run.settings, run.atoms, rows, *bins, verdict)
    return SimulationResult(folder, summary)
