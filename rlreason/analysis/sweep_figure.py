"""A sweep's curves: the metric and the sampled reward by steps, tokens and hours, a colour for each configuration.

Apart from ``sweeps.py``, which needs no matplotlib.
"""

from __future__ import annotations

from io import BytesIO

import matplotlib
from matplotlib.figure import Figure

from rlreason.analysis.sweeps import AXES, Sweep, mean_curve

# Okabe and Ito's colours, which the colour-blind can tell apart; a configuration beyond the seventh changes its dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")


def draw(sweep: Sweep) -> bytes:
    """As PNG. Thin lines are seeds, thick ones their means, where all seeds have got to."""
    configurations = list(dict.fromkeys(sweep.curves["configuration"]))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 6.5), layout="constrained")
        grid = figure.subplots(2, len(AXES), sharex="col", sharey="row")
        for place, configuration in enumerate(configurations):
            own = sweep.curves[sweep.curves["configuration"] == configuration]
            colour = _COLOURS[place % len(_COLOURS)]
            dashes = _DASHES[place // len(_COLOURS) % len(_DASHES)]
            for axes, y in zip(grid, ("value", "reward"), strict=True):
                for ax, x in zip(axes, AXES, strict=True):
                    for _, job in own.dropna(subset=[y]).groupby("job"):
                        ax.plot(job[x], job[y], dashes, color=colour, linewidth=0.7, alpha=0.4)
                    ax.plot(*mean_curve(own, x, y), dashes, color=colour, linewidth=2, label=configuration)
        for ax, name in zip(grid[1], AXES.values(), strict=True):
            ax.set_xlabel(name)
        grid[0, 0].set_ylabel(sweep.metric)
        grid[1, 0].set_ylabel("sampled reward")
        for ax in grid.flat:
            ax.grid(color="0.92")
            ax.set_axisbelow(True)
        if len(configurations) > 1:
            handles, labels = grid[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
