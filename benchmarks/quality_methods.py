"""The entrants of `quality.py`: the search, its ablations, and other people's methods.

Ablations pick blocks of the same library by simpler rules. All that is picked is entered twice:
mended, and as it is assembled from blocks that were refit and distilled.
Other people's methods prune the parent as they are published: no blocks, refits or mending of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import peers
from cpu_menu import FINALISTS, MEND, SCALE, searched
from quality_contest import Contest, Entry, Goal
from safetensors.torch import save_file
from scoring_bench import MODEL

from puzzle import corpus
from puzzle.assemble import assemble, from_weights
from puzzle.baselines.extremes import max_parameters, noop_only
from puzzle.baselines.greedy import greedy, random_child
from puzzle.baselines.influence import traced_influence
from puzzle.baselines.minitron.cut import Cut
from puzzle.baselines.minitron.grid import Grid, near
from puzzle.baselines.minitron.pruned import model_of
from puzzle.baselines.minitron.workshop import Workshop
from puzzle.baselines.uniform import uniform
from puzzle.blocks.variant import NOTHING
from puzzle.config import Config
from puzzle.evaluate import Reading, by_sequence
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.library import Library
from puzzle.measure import nearest
from puzzle.mend import mend
from puzzle.menu import Choice, Menu
from puzzle.parent import open_parent
from puzzle.run import Run, fingerprint
from puzzle.swap import Blocks
from puzzle.trial import trial

JUDGED = 6  # Minitron's cuts of a kind that are measured
MENDED, FARTHER = 3, 1.25  # uniform children that are mended, and how much farther than the first
SLACK = 1.02  # of a goal, that sizes which come in steps may overshoot

Method = Callable[[Contest, Goal], Entry]


def picked(pick: Callable[[Contest, Menu], Sequence[Choice]], *, mending: bool = True) -> Method:
    """A method that picks a block of the library for every layer.

    Of several children the nearest on the scoring text is entered, mended or as assembled.
    """
    made = mended if mending else assembled

    def enter(contest: Contest, goal: Goal) -> Entry:
        menu = contest.menu(goal)
        picks = pick(contest, menu)
        entries = [made(contest, each, _share(goal, menu, each)) for each in picks]
        return min(entries, key=contest.scoring_kl) if len(entries) > 1 else entries[0]

    return enter


def assembled(contest: Contest, choice: Choice, share: float) -> Entry:
    """The child of these blocks as the library has them, refit and distilled."""
    names = [str(block) for block in choice.blocks]
    inputs = fingerprint("assembled", contest.bench.inputs, names)
    make = partial(assemble, contest.library, choice.blocks)
    rebuild = partial(from_weights, contest.library, choice.blocks)
    foretold = choice.loss if choice.measured_kl is None else choice.measured_kl
    return Entry(" ".join(names), inputs, make, rebuild, share, foretold)


def mended(contest: Contest, choice: Choice, share: float) -> Entry:
    """The same child, mended."""
    entry = assembled(contest, choice, share)
    inputs = fingerprint(
        "mended",
        contest.bench.inputs,
        contest.bench.parts,
        MEND.model_dump(),
        entry.description.split(),
    )
    return replace(entry, inputs=inputs, make=partial(_mended, contest, choice.blocks, inputs))


def _share(goal: Goal, menu: Menu, choice: Choice) -> float:
    if goal.of == "time":
        return menu.parent.tokens_per_s / choice.prediction.tokens_per_s
    return choice.prediction.params / menu.parent.params


def _mended(contest: Contest, blocks: Blocks, inputs: str) -> PuzzleForCausalLM:
    library, parts, name = contest.library, contest.bench.parts, f"bench/quality/mended/{inputs}"
    return nearest(library, blocks, mend(library, blocks, parts, MEND, name=name, inputs=inputs))


def _best_uniform(contest: Contest, menu: Menu) -> list[Choice]:
    """Of the best by their scores those nearest to the parent, nearest first."""

    def tried() -> list[dict[str, Any]]:
        return [each.as_record() for each in trial(contest.library, uniform(menu)[:FINALISTS])]

    inputs = fingerprint(contest.bench.inputs, menu.digest(), FINALISTS)
    found = contest.run.remember(f"bench/searched/uniform.{menu.budget.name}", inputs, tried)
    nearest = found[0]["measured_kl"] * FARTHER
    near = [record for record in found[:MENDED] if record["measured_kl"] <= nearest]
    return [Choice.from_record(record) for record in near]


def influence(contest: Contest, goal: Goal) -> Entry:
    """As many of the layers that turn the stream most as the goal has room for."""
    own = contest.parent.blocks
    influences = traced_influence(contest.run, len(own))
    order = sorted(range(len(own)), key=lambda layer: influences[layer])
    cuts = (
        replace(Cut.whole(contest.parent.shape), layers=tuple(sorted(order[gone:])))
        for gone in range(len(own))
    )
    cut = next(cut for cut in cuts if contest.size(goal, cut) <= SLACK * goal.value)
    blocks = tuple(block if layer in cut.layers else NOTHING for layer, block in enumerate(own))
    inputs = fingerprint("plain", contest.parent.fingerprint, str(cut))
    make, rebuild = (partial(made, contest.library, blocks) for made in (assemble, from_weights))
    names = " ".join(map(str, blocks))
    return Entry(names, inputs, make, rebuild, contest.size(goal, cut))


def minitron(contest: Contest, goal: Goal) -> Entry:
    """Of each kind of cut a few of about the size, by width, depth and both; the nearest."""
    texts = contest.bench.texts
    split = {name: texts[name] for name in ("calibration", "scoring", "evaluation")}
    split["lesson"] = texts["calibration"]
    run, parent = Run(contest.run.folder / "minitron"), contest.parent
    config = Config.model_validate(
        {"model": str(MODEL), "prune": {"depth": "influence"}, "sequence_length": SCALE.length}
    )
    shop = Workshop.open(run, parent, contest.teacher, split, config)
    whole = Cut.whole(parent.shape)
    grid = Grid(whole, parent.family, config.prune.axes)
    size = partial(contest.size, goal)
    kinds = near(grid, goal.value, size, shop.shallow)
    fitting = [cut for cuts in kinds.values() for cut in _within(cuts, size, goal)[:JUDGED]]
    ranked = sorted(fitting, key=shop.kl)

    def entered(cut: Cut) -> Entry:
        rebuild = partial(model_of, cut.config(parent.config))
        inputs = fingerprint(shop.inputs, str(cut))
        layers = cut.layers if len(cut.layers) < parent.shape.layers else ()

        def make() -> PuzzleForCausalLM:
            return rebuild(shop.weights(cut))

        return Entry(str(cut), inputs, make, rebuild, size(cut), layers=layers)

    def best_healed() -> Entry:
        return entered(min(ranked[: config.prune.candidates], key=shop.healed_kl))

    return replace(entered(ranked[0]), to_heal=best_healed)


def _within(cuts: list[Cut], size: Callable[[Cut], float], goal: Goal) -> list[Cut]:
    """Those that keep the goal, largest first."""
    keeping = [cut for cut in cuts if size(cut) <= SLACK * goal.value]
    return sorted(keeping, key=size, reverse=True)


def _ffn_alone(whole: Cut, share: float) -> Cut:
    return replace(whole, intermediate_size=_floor(whole.intermediate_size * (1 - share), 4))


def _whole_width(whole: Cut, share: float) -> Cut:
    """As `quality_peers.py` rounds: two or three query heads a KV head, widths in their steps."""
    group = whole.heads // whole.kv_heads
    heads = whole.kv_heads * max(group - round(share * group), group - 1)
    step = math.lcm(heads, 4)
    hidden, ffn = (
        _floor(size * (1 - share), step) for size in (whole.hidden_size, whole.intermediate_size)
    )
    return replace(whole, hidden_size=hidden, heads=heads, intermediate_size=ffn)


def _ffn_channels(whole: Cut, share: float) -> Cut:
    size = whole.intermediate_size
    return replace(whole, intermediate_size=size - int(share * size))


def _layers_alone(whole: Cut, share: float) -> Cut:
    return replace(
        whole, layers=whole.layers[: len(whole.layers) - round(share * len(whole.layers))]
    )


def _floor(size: float, step: int) -> int:
    return int(size) // step * step


@dataclass(frozen=True)
class Peer:
    """A package with the settings it is tried with: setting -> the cut that a share comes to."""

    package: str
    settings: Mapping[str, Callable[[Cut, float], Cut]]

    def __call__(self, contest: Contest, goal: Goal) -> Entry:
        """The nearest to the parent, on the scoring text, of what the settings make."""
        read = Reading(contest.teacher, contest.bench.texts["scoring"])

        def tried() -> list[list[Any]]:
            reaching = [name for name in self.settings if self._sized(contest, goal, name)]
            entries = {name: self._entry(contest, goal, name) for name in reaching}
            kls = [
                [float(by_sequence(entry.make(), read)["kl"].mean()), name]
                for name, entry in entries.items()
            ]
            return sorted(kls)

        name = f"bench/quality/peers/{goal}.{self.package}"
        texts = [contest.bench.texts[split] for split in ("calibration", "scoring")]
        made = peers.VERSIONS[self.package], *self.settings, goal.budget.model_dump()
        asked = fingerprint(*made, *map(corpus.digest, texts))
        (_, best), *_ = contest.run.remember(name, asked, tried)
        return self._entry(contest, goal, best)

    def _entry(self, contest: Contest, goal: Goal, setting: str) -> Entry:
        """What one setting makes of the parent."""
        sized = self._sized(contest, goal, setting)
        assert sized, f"{self.package} {setting} does not come down to {goal}"
        share, cut = sized
        folder = (contest.run.folder / "peers").absolute()
        out = folder / f"{goal}.{self.package}.{setting}"
        text = contest.bench.texts["calibration"]
        made = self.package, peers.VERSIONS[self.package], setting, share
        inputs = fingerprint(*made, corpus.digest(text))

        def prune() -> dict[str, Any]:
            folder.mkdir(parents=True, exist_ok=True)
            tokens = folder / f"{corpus.digest(text)}.tokens"
            save_file({"tokens": text.contiguous()}, tokens)
            task = {
                "method": self.package,
                "setting": setting,
                "parent": str(MODEL),
                "tokens": str(tokens),
                "share": share,
                "out": str(out),
            }
            return peers.pruned(peers.environment(folder / self.package, self.package), task)

        found = contest.run.remember(f"bench/quality/peers/{out.name}", inputs, prune)
        sizes = [found[name] for name in ("hidden_size", "num_attention_heads")]
        assert sizes == [cut.hidden_size, cut.heads], f"{found} is not {cut}"
        assert found["intermediate_size"] == cut.intermediate_size, f"{found} is not {cut}"
        opened = open_parent(str(out))
        words = f"{setting}: {replace(cut, layers=tuple(found['kept_layers']) or cut.layers)}"
        return Entry(
            words,
            inputs,
            lambda: assemble(Library(contest.run, opened), opened.blocks),
            partial(model_of, opened.config),
            contest.size(goal, cut),
            layers=tuple(found["kept_layers"]),
        )

    def _sized(self, contest: Contest, goal: Goal, setting: str) -> tuple[float, Cut] | None:
        """The smallest share in thousandths that keeps the goal, and its cut; None if none does."""
        whole = Cut.whole(contest.parent.shape)
        shares = [each / 1000 for each in range(20, 980)]
        cuts = ((share, self.settings[setting](whole, share)) for share in shares)
        fitting = (pair for pair in cuts if contest.size(goal, pair[1]) <= SLACK * goal.value)
        return next(fitting, None)


OURS = "puzzle"
UNIFORM = "uniform"
ASSEMBLED = ", not mended"
PICKED: dict[str, Callable[[Contest, Menu], Sequence[Choice]]] = {
    OURS: lambda contest, menu: [searched(contest.bench, menu)],
    UNIFORM: _best_uniform,
    "greedy": lambda _, menu: greedy(menu)[:1],
    "random": lambda _, menu: random_child(menu, seed=0, tries=1)[:1],
    "most parameters": lambda _, menu: max_parameters(menu)[:1],
    "only removals": lambda _, menu: noop_only(menu)[:1],
}
OTHERS: dict[str, Method] = {
    "minitron": minitron,
    "block influence": influence,
    "torch-pruning": Peer("torch-pruning", {"taylor-ffn": _ffn_alone, "taylor": _whole_width}),
    "optipfair": Peer("optipfair", {"width": _ffn_channels, "depth": _layers_alone}),
}
METHODS: dict[str, Method] = {
    **{name: picked(pick) for name, pick in PICKED.items()},
    **{name + ASSEMBLED: picked(pick, mending=False) for name, pick in PICKED.items()},
    **OTHERS,
}
