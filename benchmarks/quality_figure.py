"""The figure of `quality.py`: KL against measured speed, a line a method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import record
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from quality_methods import ASSEMBLED, OURS
from quality_methods import UNIFORM as UNIFORM_CHILD

from puzzle.figures import CHILD, HEALED, PARENT, UNIFORM

COLORS = {OURS: CHILD, UNIFORM_CHILD: UNIFORM}
MARKS = "osD^vP*Xdh<>p"
MEASURED = {"time": "time_share", "parameters": "params_share"}  # of a goal


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Write `results/quality.svg`: a panel for goals of time and one for parameters."""
    panels = [panel for panel in MEASURED.items() if any(row["of"] == panel[0] for row in rows)]
    figure = Figure(figsize=(5 * len(panels) + 2, 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    methods = sorted({row["method"] for row in rows})
    for axis, (of, share) in zip(axes, panels):
        for mark, method in zip(cycle(MARKS), methods):
            own = method.removesuffix(ASSEMBLED)
            for tokens in (0, *{row["healed_tokens"] for row in rows if row["healed_tokens"]}):
                points = sorted(
                    (row[share], row["kl"])
                    for row in rows
                    if (row["of"], row["method"], row["healed_tokens"]) == (of, method, tokens)
                    and share in row  # its time may have to be taken yet
                )
                color = HEALED if tokens and own == OURS else COLORS.get(own, PARENT)
                label = f"{method}, healed" if tokens else method
                if points:
                    line = ":" if own not in COLORS else "-" if method in COLORS else "--"
                    line = "-." if tokens and own in COLORS else line
                    axis.plot(*zip(*points), line, marker=mark, color=color, label=label)
        axis.set_xlabel(f"{of} of the parent's, measured")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3)
    labels = [axis.get_legend_handles_labels() for axis in axes]
    by_label = {label: line for lines, names in labels for label, line in zip(names, lines)}
    figure.legend(by_label.values(), by_label, loc="outside right upper", fontsize=7)
    figure.axes[0].set_ylabel("KL(parent || child), nats a token")
    figure.savefig(record.RESULTS / "quality.svg", metadata={"Date": None})
