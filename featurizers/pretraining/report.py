"""The page that shows how a pretraining went."""

from typing import Any

from matplotlib.figure import Figure

from forcefield.axes import BLUE, GREY
from forcefield.display import clock
from forcefield.files import write_text
from training.config import TrainConfig
from training.config_io import dump_yaml
from training.history import Row, read_history
from training.html import Card, Section, cards, details, figure_html, key_values, page
from training.run_folder import RunFolder


def write_report(folder: RunFolder, config: TrainConfig, summary: dict[str, Any]) -> None:
    """Write report.html."""
    history = read_history(folder.log)
    at_level = summary["unexplained_at_level_A"]
    data, train = summary["data"], summary["train"]
    sections = [
        Section(
            "",
            cards(
                [
                    Card("noise not explained at 0.1 Å", f"{100 * at_level['0.1']:.0f}", "%"),
                    Card("structures", f"{data['structures']['train']:,}"),
                    Card("molecules", f"{data['molecules']:,}"),
                    Card("time", clock(train["seconds"]), f"{train['epochs']} epochs"),
                ]
            ),
        ),
        Section(
            "How much of the noise is found",
            figure_html(
                curves(history, at_level),
                "Share of the variance of the noise that is not predicted, on "
                f"{data['held_out']} held out. "
                "Without an answer it is 1.",
            ),
        ),
        Section("Data", key_values({key: _words(value) for key, value in data.items()})),
        Section("", details("Configuration", f"<pre>{dump_yaml(config)}</pre>")),
    ]
    write_text(
        folder.report, page(f"Pretraining {config.name}", sections, "denoising of coordinates")
    )


def curves(history: list[Row], at_level: dict[str, float]) -> Figure:
    """Unexplained shares over the epochs, and by noise level."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for part, color in (("train", GREY), ("valid", BLUE)):
        key = f"{part}_unexplained"
        points = [(row["epoch"], row[key]) for row in history if key in row]
        if points:
            left.plot(*zip(*points, strict=True), color=color, label=part)
    if left.lines:
        left.legend(frameon=False)
    right.plot([float(level) for level in at_level], list(at_level.values()), "o-", color=BLUE)
    right.set_xscale("log")
    for axes, label in ((left, "epoch"), (right, "noise level (Å)")):
        axes.set(xlabel=label, ylabel="share not explained")
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
