"""The figures of a result, as matplotlib figures: shown in notebooks, inlined in the report."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from puzzle.blocks.variant import FFN, GQA, Block, Groups, MoE
from puzzle.result import COLUMNS, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARENT, UNIFORM, CHILD, HEALED = "#9aa5b1", "#e0a458", "#2f6db3", "#173f6b"
COLORS = dict(zip(COLUMNS.values(), (PARENT, UNIFORM, CHILD, HEALED)))
INCHES_A_LAYER, HALF_HEIGHT = 0.42, 0.8


class Picture(Figure):
    """A figure that notebooks show by itself, without a plotting backend."""

    def svg(self) -> str:
        """An SVG element, text as text."""
        out = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "puzzle"}):
            self.savefig(out, format="svg", metadata={"Date": None})
        text = out.getvalue()
        return text[text.index("<svg") :]

    _repr_svg_ = svg


def architecture_map(result: Result) -> Picture:
    """Two rows of bars, attention and FFN: what each layer keeps of the parent's."""
    blocks = result.architecture.blocks
    parents = list(map(Block.parse, result.models["parent"]["blocks"]))
    figure, axes = _figure(len(blocks), rows=2)
    for axis, half in zip(axes, ("attention", "ffn")):
        variants = [getattr(block, half) for block in blocks]
        owns = [getattr(block, half) for block in parents]
        for layer, (variant, own) in enumerate(zip(variants, owns)):
            share = _size(variant) / _size(own)
            axis.bar(layer, 1, width=0.9, color="#eef1f4")
            axis.bar(layer, share, width=0.9, color=CHILD)
            inside = share > 0.45
            axis.text(
                layer,
                share / 2 if inside else share + 0.04,
                _label(variant),
                ha="center",
                va="center" if inside else "bottom",
                rotation=90,
                fontsize=7,
                color="white" if inside else "#334",
            )
        axis.set(ylim=(0, 1), ylabel={"attention": "attention", "ffn": "FFN"}[half], yticks=[0, 1])
        whole = {_size(own) for own in owns}
        axis.set_yticklabels(["0", str(*whole) if len(whole) == 1 else "parent"])
        axis.set_xticks(range(len(blocks)))
    axes[-1].set_xlabel("layer")
    return figure


def score_map(result: Result) -> Picture:
    """Blocks by layers, colored by loss; the chosen block of each layer is framed."""
    table = result.scores.pivot_table(index="block", columns="layer", values="loss")
    table = table.loc[table.mean(axis=1).sort_values().index]
    floor = max(float(np.nanmin(table.where(table > 0))), 1e-6)
    figure, (axis,) = _figure(table.shape[1], height=0.6 + 0.19 * len(table))
    image = axis.imshow(
        table.clip(lower=floor), aspect="auto", cmap="YlOrRd", norm=LogNorm(vmin=floor)
    )
    rows = list(table.index)
    for layer, block in enumerate(result.architecture.blocks):
        place = (layer - 0.5, rows.index(str(block)) - 0.5)
        axis.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=HEALED, linewidth=1.8))
    axis.set_yticks(range(len(rows)), rows, fontsize=7, family="monospace")
    axis.set_xticks(range(table.shape[1]))
    axis.set_xlabel("layer")
    figure.colorbar(image, ax=axis, label="KL per token", fraction=0.05, pad=0.02)
    return figure


def budget_use(result: Result) -> Picture:
    """How much of each limit the uniform child and the child use."""
    models = {
        COLUMNS[name]: model["shares"] for name, model in result.models.items() if name != "parent"
    }
    limits = list(models["child"])
    figure, (axis,) = _figure(12, height=0.7 + 0.55 * len(limits))
    for offset, (model, shares) in enumerate(models.items()):
        places = np.arange(len(limits)) + (offset - (len(models) - 1) / 2) * 0.36
        values = [shares[limit] for limit in limits]
        axis.barh(places, values, height=0.34, color=COLORS[model], label=model)
        for place, value in zip(places, values):
            axis.text(value + 0.01, place, f"{value:.1%}", va="center", fontsize=8)
    axis.axvline(1, color="#b33", linewidth=1)
    axis.set_yticks(range(len(limits)), limits)
    axis.set(xlim=(0, 1.4), xlabel="share of the limit used")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def quality(result: Result) -> Picture:
    """KL to the parent of each model, and the healing's losses by step."""
    figure, (bars, curve) = _figure(16, columns=2)
    _bars(bars, result, "KL to the parent", "{:.3f}")
    steps = result.healing
    first = "kl" if "kl" in steps else "lm"  # how well the text is told, where there is no teacher
    for name, color in ((first, HEALED), ("cosine", UNIFORM)):
        if name in steps:
            curve.plot(steps.index + 1, steps[name], color=color, label=f"{name} loss")
    curve.set(xlabel="healing step", ylim=(0, None))
    if len(steps):
        curve.legend(frameon=False, fontsize=8)
    return figure


def throughput(result: Result) -> Picture:
    """Predicted generated tokens per second, and how the time of one batch divides."""
    figure, (bars, times) = _figure(16, columns=2)
    _bars(bars, result, "throughput", "{:,.0f}")
    bars.set_ylabel("tokens/s, predicted")
    served = {COLUMNS[name]: result.served(name) for name in result.models}
    prefill, decode = (
        np.array([1e6 * each[key] / each["batch"] for each in served.values()])
        for key in ("prefill_s", "decode_s")
    )
    times.bar(range(len(served)), prefill, color=CHILD, width=0.6, label="prefill")
    times.bar(range(len(served)), decode, bottom=prefill, color=UNIFORM, width=0.6, label="decode")
    times.set_xticks(range(len(served)), list(served))
    times.set_ylabel("us a request, predicted")
    times.legend(frameon=False, fontsize=8)
    return figure


def _figure(
    layers: int, *, rows: int = 1, columns: int = 1, height: float | None = None
) -> tuple[Picture, list[Axes]]:
    width = min(14.0, 2.2 + INCHES_A_LAYER * layers)
    figure = Picture(figsize=(max(width, 6.5), height or 1.5 + HALF_HEIGHT * rows), layout="tight")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, list(axes)


def _bars(axis: Axes, result: Result, row: str, form: str) -> None:
    values = result.table.loc[row].dropna()
    axis.bar(range(len(values)), values, color=[COLORS[name] for name in values.index], width=0.6)
    for place, value in enumerate(values):
        axis.text(place, value, form.format(value), ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(values)), [name.replace(", ", ",\n") for name in values.index])
    axis.set_ylabel(row)
    axis.margins(y=0.12)


def _size(variant: Any) -> int:
    match variant:
        case GQA(kv_heads=heads):
            return heads
        case FFN(intermediate_size=width):
            return width
        case MoE(experts=experts):
            return experts
        case _:
            return 0


def _label(variant: Any) -> str:
    match variant:
        case GQA(kv_heads=heads, window=window):
            kind = "groups" if isinstance(variant, Groups) else "KV"
            return f"{heads} {kind}" + (f" w{window}" if window else "")
        case FFN(intermediate_size=width):
            return str(width)
        case _:
            return str(variant)
