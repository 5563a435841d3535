"""How figures look: their colours, and what every pair of axes gets."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, LIGHT = "#1f6feb", "#e8590c", "#8a97a6", "#c9d3de"


def finish(axes: "Axes", x: str, y: str) -> None:
    """Labels, a faint grid, and no frame above and on the right."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e8ecf1", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
