"""report.html of an analysis: which motions are slow, between which states, and how sure that is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurizers.analysis import plots
from featurizers.analysis.results import Analysis
from forcefield.version import __version__
from training.html import (
    Card,
    Section,
    cards,
    details,
    figure_html,
    key_values,
    note,
    page,
    row,
    table,
)

_METHODS = {
    "linear": "linear combinations of the scalar features (TICA on principal components)",
    "vampnet": "VAMPNet",
    "spib": "State Predictive Information Bottleneck",
}


def analysis_report(analysis: Analysis, structures: Sequence[Path], name: str) -> str:
    """The whole page.

    Args:
        analysis: What was found.
        structures: Files of the metastable states, none if there are no structures.
        name: Of the features.
    """
    settings = analysis.settings
    mixer = "" if settings.method == "linear" else f", mixer {settings.mixer}"
    subtitle = (
        f"{analysis.coordinates.shape[1]} slow coordinates at a lag of {lag_text(analysis)}: "
        f"{_METHODS[settings.method]}{mixer}"
    )
    sections = [_headline(analysis)]
    if analysis.remarks:
        sections.append(Section("Remarks", "".join(note(text) for text in analysis.remarks)))
    sections += [_coordinates(analysis), _free_energy(analysis)]
    if analysis.dihedrals is not None:
        sections.append(_dihedrals(analysis, analysis.dihedrals))
    sections += [_timescales(analysis), _states(analysis, structures), _test(analysis)]
    sections += [_importance(analysis), _scores(analysis), _settings(analysis)]
    footer = f"hegnn-forcefield {__version__} · Markov models by deeptime"
    return page(f"Slow motions in {name}", sections, subtitle, footer)


def lag_text(analysis: Analysis) -> str:
    """The lag as a time, and in frames."""
    frames = "1 frame" if analysis.lag == 1 else f"{analysis.lag} frames"
    if analysis.clock.frame_time is None:
        return frames
    return f"{analysis.clock.text(analysis.lag)} ({frames})"


def _headline(analysis: Analysis) -> Section:
    """The figures that matter, large."""
    clock, frames = analysis.clock, analysis.bounds[-1]
    vamp2, spread = analysis.score("vamp2")
    slowest, unit = clock.text(*analysis.slowest).rsplit(" ", 1)
    total = clock.text(frames).rsplit(" ", 1)
    items = [
        Card("frames", f"{frames:,}"),
        Card(f"total time, {len(analysis.bounds) - 1} trajectories", *total),
        Card("VAMP-2, cross-validated", f"{vamp2:.3f} ± {spread:.3f}"),
        Card("slowest timescale", slowest, unit),
        Card("metastable states", str(len(analysis.metastable.populations))),
    ]
    return Section("", cards(items))


def _coordinates(analysis: Analysis) -> Section:
    """Coordinates over time."""
    times = ", ".join(
        f"{k + 1}: {analysis.clock.text(value)}"
        for k, value in enumerate(analysis.coordinate_timescales)
    )
    caption = (
        "Slow coordinates over time, in the colours of the metastable states; grey lines separate "
        f"trajectories. Relaxation times by TICA: {times}"
    )
    figure = plots.coordinates_over_time(
        analysis.coordinates, analysis.states, analysis.bounds, analysis.clock
    )
    return Section("Slow coordinates", figure_html(figure, caption))


def _free_energy(analysis: Analysis) -> Section:
    """Free energy over the first two coordinates."""
    figure = plots.free_energy(analysis.coordinates, analysis.model.weights(), analysis.states)
    caption = (
        "Left: free energy in kT, frames weighted by the stationary distribution of the Markov model. "
        "Right: metastable states"
    )
    return Section("Free energy", figure_html(figure, caption))


def _dihedrals(analysis: Analysis, dihedrals: np.ndarray) -> Section:
    """States on the φ/ψ plane."""
    figure = plots.dihedral_states(dihedrals, analysis.model.weights(), analysis.states)
    caption = "The same over φ and ψ, which the coordinates know nothing of"
    return Section("Backbone dihedrals", figure_html(figure, caption))


def _timescales(analysis: Analysis) -> Section:
    """Implied timescales over the lag."""
    caption = (
        f"Implied timescales of Markov models of {len(analysis.model.kept)} connected clusters, with "
        "standard errors. What is slower than the lag (outside the grey) and does not change with it can "
        "be trusted. Dashed: the lag of this analysis"
    )
    figure = plots.implied_timescales(analysis.timescales, analysis.lag, analysis.clock)
    return Section(
        "Implied timescales", row(figure_html(figure, caption), _timescale_table(analysis))
    )


def _timescale_table(analysis: Analysis) -> str:
    place = int(np.flatnonzero(analysis.timescales.lags == analysis.lag)[0])
    rows = [
        [k + 1, analysis.clock.text(value, error)]
        for k, (value, error) in enumerate(
            zip(analysis.timescales.values[place], analysis.timescales.errors[place], strict=True)
        )
    ]
    return table(["process", f"timescale at a lag of {analysis.clock.text(analysis.lag)}"], rows)


def _states(analysis: Analysis, structures: Sequence[Path]) -> Section:
    """Populations, structures and passage times."""
    found, clock = analysis.metastable, analysis.clock
    frames = np.bincount(analysis.states[analysis.states >= 0], minlength=len(found.populations))
    files = [f"{path.parent.name}/{path.name}" for path in structures]
    rows: list[list[object]] = []
    for k, (population, error) in enumerate(
        zip(found.populations, found.population_errors, strict=True)
    ):
        shown = f"{100 * population:.1f} ± {100 * error:.1g}"
        structure = [files[k]] if files else []
        rows.append([f"state {k + 1}", shown, int(frames[k]), *structure])
    header = ["", "population (%)", "frames", *(["structures"] if files else [])]
    body = table(header, rows)
    if len(rows) > 1:
        body += "<h3>Mean first passage times</h3>" + _passage_table(analysis)
    body += note(
        f"Populations and passage times of the Markov model at a lag of {clock.text(analysis.lag)}, with "
        "standard errors of its posterior."
    )
    return Section("Metastable states", body)


def _passage_table(analysis: Analysis) -> str:
    found, clock = analysis.metastable, analysis.clock
    number_of = len(found.populations)
    rows = [
        [
            f"from state {a + 1}",
            *(
                clock.text(found.passage[a, b], found.passage_errors[a, b]) if a != b else "–"
                for b in range(number_of)
            ),
        ]
        for a in range(number_of)
    ]
    return table(["", *(f"to state {b + 1}" for b in range(number_of))], rows)


def _test(analysis: Analysis) -> Section:
    """Chapman-Kolmogorov test."""
    caption = (
        "Probability of being in a state again after some time, having started in it: predicted by the "
        "model at the lag (band: two standard errors), and by models whose lag is that time"
    )
    figure = plots.chapman_kolmogorov(analysis.test, analysis.clock)
    return Section("Chapman-Kolmogorov test", figure_html(figure, caption))


def _importance(analysis: Analysis) -> Section:
    """Importance of the tokens."""
    caption = (
        "Part of the VAMP-2 score, without the 1 of the constant function, that is lost when the features "
        "of one token are shuffled among frames. Tokens that say the same as others lose little"
    )
    return Section(
        "Importance of tokens",
        figure_html(plots.importance(analysis.importance, analysis.labels), caption),
    )


def _scores(analysis: Analysis) -> Section:
    """Scores of the folds, and the course of the training."""
    rows: list[list[object]] = [
        [f"fold {k + 1}", f"{fold.vamp2:.4f}", f"{fold.vampe:.4f}"]
        for k, fold in enumerate(analysis.scores)
    ]
    means = [f"{value:.4f} ± {spread:.4f}" for value, spread in map(analysis.score, _KINDS)]
    rows.append(["mean ± standard deviation", *means])
    body = table(["", "VAMP-2", "VAMP-E"], rows) + note(
        "Each fold: coordinates learned from the training frames, scored on the others, which are whole "
        "trajectories or blocks in time a lag away. The constant function counts 1, so that "
        f"{analysis.coordinates.shape[1]} coordinates have at most "
        f"{1 + analysis.coordinates.shape[1]}."
    )
    if analysis.history:
        label = "negative loss" if analysis.settings.method == "spib" else "VAMP-2"
        figure = plots.training_course(analysis.history, label)
        caption = (
            "Course of the last training, with all trajectories. Mini-batches count all outputs of the "
            "network, held-out blocks the slow coordinates"
            if label == "VAMP-2"
            else "Course of the last training, with all trajectories; steps are changes of the states"
        )
        body = row(body, figure_html(figure, caption))
    return Section("Scores on held-out frames", body)


_KINDS = ("vamp2", "vampe")


def _settings(analysis: Analysis) -> Section:
    """What was asked for, folded."""
    settings = analysis.settings
    values = {key: getattr(settings, key) for key in settings.__dataclass_fields__}
    facts = {
        "lag": lag_text(analysis),
        "clusters that are connected": len(analysis.model.kept),
        "share of the frames in them": f"{100 * analysis.model.share:.1f} %",
    }
    return Section("Settings", key_values(facts) + details("All settings", key_values(values)))
