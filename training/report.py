"""report.html of a training run: what was trained, on what, how well.

The functions that return a :class:`~training.html.Section` can be used in other reports.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ase.data import chemical_symbols

from forcefield.display import clock
from training import plots
from training.config import TrainConfig
from training.config_io import config_keys, dump_yaml
from training.evaluate import Predictions
from training.history import Row
from training.html import (
    Card,
    Section,
    cards,
    details,
    figure_html,
    key_values,
    note,
    number,
    page,
    row,
    table,
)
from training.uncertainty import compare

_ENDINGS = {
    "complete": "complete",
    "early": "stopped early: the validation loss no longer fell",
    "interrupted": "interrupted; continue with --resume",
}


def training_report(
    config: TrainConfig,
    data: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: Sequence[Row],
    predictions: Predictions | None,
) -> str:
    """The whole page.

    Args:
        config: The resolved configuration.
        data: Contents of data.json.
        summary: Contents of summary.json.
        history: Rows of log.csv.
        predictions: On the test frames, if there are any.
    """
    train = summary["train"]
    subtitle = (
        f"{summary['model']['name']} trained on {data['frames']['train']} frames of {data['source']}; "
        f"{train['epochs']} epochs, {_ENDINGS[train['stopped']]}"
    )
    sections = [headline(summary), learning_section(history, summary)]
    if predictions is not None:
        sections += [parity_section(predictions, summary["test"]), errors_section(predictions)]
        sections.append(
            uncertainty_section(predictions, summary["uncertainty"].get("calibrated_on", 0))
        )
    sections += [data_section(data), settings_section(config, summary)]
    footer = (
        f"hegnn-forcefield {summary['versions']['hegnn-forcefield']} · lengths in Å, energies in eV"
    )
    return page(config.name, sections, subtitle, footer)


def headline(summary: Mapping[str, Any]) -> Section:
    """The figures that matter, large."""
    part = "test" if summary["test"] else "valid"
    errors = summary[part]
    items = []
    if errors:
        name = {"test": "test", "valid": "validation"}[part]
        items = [
            Card(f"force MAE, {name}", number(errors["forces_mae_meV_per_A"]), "meV/Å"),
            Card(f"energy MAE, {name}", number(errors["energy_mae_meV"]), "meV"),
            Card(
                f"energy MAE per atom, {name}",
                number(errors["energy_mae_meV_per_atom"]),
                "meV/atom",
            ),
        ]
        if "stress_mae_meV_per_A3" in errors:
            value = number(errors["stress_mae_meV_per_A3"])
            items.append(Card(f"stress MAE, {name}", value, "meV/Å³"))
    inference = summary["inference"]
    items += [
        Card(
            f"energy and forces of {inference['atoms']} atoms ({inference['device']})",
            number(inference["ms_per_step"]),
            "ms",
        ),
        Card("training time", clock(summary["train"]["seconds"]), ""),
        *_xtb_cards(summary.get("xtb") or {}),
        Card("parameters", f"{summary['model']['parameters']:,}"),
    ]
    return Section("", cards(items))


def _xtb_cards(learned: Mapping[str, Any]) -> list[Card]:
    """What learning frames of GFN2-xTB before took."""
    if not learned:
        return []
    seconds = learned["labelling_seconds"] + learned["training_seconds"]
    return [Card(f"before, {learned['frames']:,} frames of GFN2-xTB", clock(seconds), "")]


def learning_section(history: Sequence[Row], summary: Mapping[str, Any]) -> Section:
    """Errors over the epochs."""
    if not history:
        return Section(
            "Learning curves", note("Training was stopped before the first epoch ended.")
        )
    best = summary["train"]["best_epoch"]
    caption = (
        "Errors of the training batches (current weights) and of the validation frames (averaged "
        f"weights). The weights of epoch {best} were kept."
    )
    return Section("Learning curves", figure_html(plots.learning_curves(history), caption))


def parity_section(predictions: Predictions, errors: Mapping[str, float]) -> Section:
    """Predictions against labels on the test frames."""
    energy = figure_html(
        plots.energy_parity(predictions),
        f"Energies per atom from their mean. MAE {number(errors['energy_mae_meV_per_atom'])}, "
        f"RMSE {number(errors['energy_rmse_meV_per_atom'])} meV/atom",
    )
    forces = figure_html(
        plots.forces_parity(predictions),
        f"Force components. MAE {number(errors['forces_mae_meV_per_A'])}, "
        f"RMSE {number(errors['forces_rmse_meV_per_A'])} meV/Å",
    )
    return Section(f"Parity on {len(predictions.energy):,} test frames", row(energy, forces))


def errors_section(predictions: Predictions) -> Section:
    """How the errors are distributed, and which elements they belong to."""
    histograms = row(
        figure_html(plots.error_histogram(predictions), "Errors of force components by element"),
        figure_html(plots.energy_error_histogram(predictions), "Errors of the energies"),
    )
    rows = [
        [
            chemical_symbols[element],
            int(entry["atoms"]),
            entry["forces_mae_meV_per_A"],
            entry["forces_rmse_meV_per_A"],
            entry["forces_rms_label_meV_per_A"],
            100.0 * entry["forces_rmse_meV_per_A"] / (entry["forces_rms_label_meV_per_A"] or 1.0),
        ]
        for element, entry in predictions.errors_by_element().items()
    ]
    header = [
        "element",
        "atoms",
        "MAE (meV/Å)",
        "RMSE (meV/Å)",
        "RMS of the labels (meV/Å)",
        "RMSE (%)",
    ]
    return Section("Errors on the test frames", histograms + table(header, rows))


def uncertainty_section(predictions: Predictions, calibrated_on: int) -> Section:
    """Whether predictions that are said to be uncertain are the wrong ones, and by how much."""
    title = "Estimated errors"
    comparisons = compare(predictions)
    if not comparisons:
        return Section(
            title, note("The potential has no error estimate: that takes validation frames.")
        )
    names = {"forces": "force of each atom", "energy": "energy of each frame"}
    units = {"forces": "meV/Å", "energy": "meV"}
    frames = len(comparisons["energy"].estimated)
    figures = row(
        *(
            figure_html(
                plots.reliability(*comparisons[quantity].bins(), units[quantity]),
                f"Estimated against true error, {names[quantity]}: root mean squares in bins of "
                f"equally many predictions, {frames:,} test frames",
            )
            for quantity in names
        )
    )
    rows = []
    for quantity, name in names.items():
        values = comparisons[quantity].figures()
        shares = [100.0 * values[f"within_{k}_sigma"] for k in (1, 2)]
        rows.append([name, values["spearman"], *shares, values["mean_squared_normalized"]])
    header = [
        "error of the",
        "rank correlation with the estimate",
        "within 1 σ (%; normal: 68)",
        "within 2 σ (%; normal: 95)",
        "mean of (error / σ)²",
    ]
    if not calibrated_on:
        return Section(title, figures + table(header, rows))
    # The standard error of a standard deviation that is taken from so many numbers.
    share = 100.0 / math.sqrt(2.0 * calibrated_on)
    scale = note(
        f"The size of the estimates is from {calibrated_on} validation frames, so that of energies is "
        f"itself uncertain by about {share:.0f} %."
    )
    return Section(title, figures + table(header, rows) + scale)


def data_section(data: Mapping[str, Any]) -> Section:
    """Where the frames come from."""
    references = ", ".join(
        f"{chemical_symbols[int(z)]} {energy:.4f}"
        for z, energy in data["reference_energies_eV"].items()
    )
    frames = data["frames"]
    values = {
        "source": data["source"],
        "frames": f"{frames['train']} training, {frames['valid']} validation, {frames['test']} test",
        "starting from": data["start"],
        "elements": " ".join(chemical_symbols[z] for z in data["elements"]),
        "reference energies (eV)": f"{references}; {data['reference_energies_from']}",
        "RMS of the training forces": f"{number(data['forces_rms_eV_per_A'])} eV/Å",
        "neighbours per atom": data["neighbors_per_atom"],
        "sha256": data["sha256"],
    }
    values |= {key: data[key] for key in ("license", "notes") if data[key]}
    return Section("Data", "".join(note(text) for text in data["warnings"]) + key_values(values))


def settings_section(config: TrainConfig, summary: Mapping[str, Any]) -> Section:
    """Configuration, versions and machine, folded."""
    values = config.model_dump()
    rows = []
    for key in config_keys():
        section, _, leaf = key.path.rpartition(".")
        value = values[section][leaf] if section else values[leaf]
        if value is not None:
            rows.append([key.path, str(value), key.field.description or ""])
    body = (
        details("Configuration", table(["key", "value", "meaning"], rows))
        + details("Configuration as YAML", f"<pre><code>{escape(dump_yaml(config))}</code></pre>")
        + details("Versions and machine", key_values({**summary["versions"], **summary["machine"]}))
    )
    return Section("Settings", body)
