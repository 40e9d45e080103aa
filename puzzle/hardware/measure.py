"""Time halves of layers on the device at hand: the modules that are exported, with a KV cache.

What is timed is what would run, in one pass that reads prompts or makes one token each at a given
context: `PuzzleLayer` with torch's kernels, or the same half on our own (`kernel_half.py`). Weights
rotate among copies that no cache holds, as those of a whole model do. Seconds are medians; on CUDA
those of graphs (`graphs.py`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle
from typing import Any

import torch

from puzzle.blocks.variant import Block, NoOp
from puzzle.export.modeling_puzzle import CACHE, PuzzleForCausalLM, PuzzleLayer, layer_masks
from puzzle.hardware.graphs import Run, captured_or_launched, warm_s
from puzzle.modules import build_layer, build_model, child_config, rotary

ROTATED_BYTES = 256 * 2**20  # weights in turn: more than the caches of processors and GPUs
MOST_COPIES, MOST_PASSES = 256, 16  # in turn on a CPU; in one graph on a GPU
LONGEST_GRAPH_S = 0.02  # launched one by one; a pass that takes longer is a graph alone
FEWEST = 7  # samples of a pass
LEAST_S, LEAST_GRAPHS_S = 0.3, 0.05  # of sampling on a CPU and of graphs, which are steady
EMPTY = Block(NoOp(), NoOp())
KeysValues = tuple[torch.Tensor, torch.Tensor]  # a cache [B, K, T, h]
Way = Callable[[torch.Tensor], torch.Tensor]  # of the residual stream through a half


@dataclass(frozen=True)
class Case:
    """One timing: a half (None: what lies outside the layers) in one pass."""

    half: Block | None
    phase: str  # prefill or decode
    batch: int
    length: int  # of the prompts, or the context that the new token sees
    kernels: str = "torch"  # whose they are: torch or triton

    @property
    def tokens(self) -> int:
        """Of each sequence that go through the pass."""
        return self.length if self.phase == "prefill" else 1


class Bench:
    """Times cases of one parent's halves; holds the random layers of the last half only."""

    def __init__(self, config: Any, dtype: torch.dtype, device: str) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self._built: tuple[Block | None, list[Any]] | None = None

    def time(self, case: Case) -> tuple[float, float]:
        """Seconds of one pass, and the middle half's spread over them.

        Raises:
            torch.OutOfMemoryError: the GPU does not hold the pass.
        """
        with torch.inference_mode():
            return self.sample(self._outside(case) if case.half is None else self._alone(case))

    def sample(self, passes: Sequence[Run]) -> tuple[float, float]:
        """Median seconds of passes that take their turn, and the middle half's spread over them."""
        cuda = self.device.type == "cuda"
        sample_s, least_s = (_graph(passes), LEAST_GRAPHS_S) if cuda else (_turns(passes), LEAST_S)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < FEWEST or time.perf_counter() - begin < least_s:
            times.append(sample_s())
        quarters = statistics.quantiles(times, n=4)
        return quarters[1], (quarters[2] - quarters[0]) / quarters[1]

    def ways(self, case: Case, layers: Sequence[PuzzleLayer]) -> list[Way]:
        """Through each of the layers, which hold the case's half, in its pass.

        Caches rotate as weights do, as far as ROTATED_BYTES go.
        """
        assert case.half is not None
        ours = case.kernels == "triton"  # which fill the last rows of the cache, torch appends them
        rows = case.length if ours else case.length - case.tokens
        first = self._past(case.half, case.batch, rows)
        count = min(len(layers), 1 + ROTATED_BYTES // max(1, 2 * first[0].nbytes))
        pasts = [first, *((first[0].clone(), first[1].clone()) for _ in range(count - 1))]
        way = self._on_kernels(case) if ours else self._on_torch(case, case.half, first)
        return [way(layer, past) for layer, past in zip(layers, cycle(pasts))]

    @cached_property
    def _child_config(self) -> Any:
        return child_config(self.config, [EMPTY])

    @cached_property
    def _rotary(self) -> Any:
        return rotary(self._child_config).to(self.device)

    def _alone(self, case: Case) -> list[Run]:
        half = case.half
        assert half is not None
        layers = self._copies(half, lambda: random_layer(self.config, half, self._to))
        stream, _ = self._stream(case)
        return [partial(way, stream) for way in self.ways(case, layers)]

    def _stream(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream that enters a pass, and the positions of its tokens."""
        stream = torch.randn(case.batch, case.tokens, self.config.hidden_size, **self._to)
        positions = torch.arange(case.length - case.tokens, case.length, device=self.device)
        return stream, positions.unsqueeze(0)

    def _on_kernels(self, case: Case) -> Callable[[PuzzleLayer, KeysValues], Way]:
        from puzzle.hardware.kernel_half import KernelHalf, Past

        stream, positions = self._stream(case)
        cos, sin = self._rotary(stream, position_ids=positions)

        def way(layer: PuzzleLayer, past: KeysValues) -> Way:
            return partial(KernelHalf(layer), past=Past(cos, sin, *past))

        return way

    def _on_torch(
        self, case: Case, half: Block, example: KeysValues
    ) -> Callable[[PuzzleLayer, KeysValues], Way]:
        stream, positions = self._stream(case)
        window = half.attention.sees
        masks = layer_masks(
            self._child_config,
            {window},
            inputs_embeds=stream,
            attention_mask=None,
            cache=filled_cache(*example),
            position_ids=positions,
        )
        context = {
            "attention_mask": masks[window],
            "position_ids": positions,
            "position_embeddings": self._rotary(stream, position_ids=positions),
            "use_cache": True,
        }

        def way(layer: PuzzleLayer, past: KeysValues) -> Way:
            cache = filled_cache(*past)

            def run(stream: torch.Tensor) -> torch.Tensor:
                try:
                    return layer(stream, **context, **{CACHE: cache})
                finally:  # what the pass appended goes
                    cache.layers[0].keys, cache.layers[0].values = past

            return run

        return way

    def _past(self, half: Block, batch: int, rows: int) -> KeysValues:
        heads = half.attention.cached_heads
        kept = torch.randn(2, batch, heads, rows, self._child_config.head_dim, **self._to)
        return kept[0], kept[1]

    def _outside(self, case: Case) -> list[Run]:
        models = self._copies(None, lambda: random_model(self.config, [EMPTY], self._to))
        inputs = torch.ones(case.batch, case.tokens, dtype=torch.long, device=self.device)
        unseen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)  # else one is made

        def run(model: PuzzleForCausalLM) -> torch.Tensor:
            logits = model(inputs, attention_mask=unseen, logits_to_keep=1).logits
            return logits[:, -1].argmax(-1)

        return [partial(run, model) for model in models]

    def _copies(self, half: Block | None, make: Callable[[], Any]) -> list[Any]:
        if self._built is None or self._built[0] != half:
            self._built = None
            cuda = self.device.type == "cuda"
            if cuda:
                torch.cuda.empty_cache()
            first = make()
            held = sum(t.numel() * t.element_size() for t in first.state_dict().values())
            most = (MOST_PASSES if cuda else MOST_COPIES) - 1
            others = [make() for _ in range(min(most, ROTATED_BYTES // max(1, held)))]
            self._built = (half, [first, *others])
        return self._built[1]

    @property
    def _to(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device}


def filled_cache(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """A cache whose first layer holds these [B, K, T, h]; they are not copied, nor written to."""
    from transformers.cache_utils import DynamicCache

    cache: Any = DynamicCache()
    cache.update(keys[:, :, :0], values[:, :, :0], 0)
    cache.layers[0].keys, cache.layers[0].values = keys, values
    return cache


def random_layer(config: Any, half: Block, to: dict[str, Any]) -> PuzzleLayer:
    """A layer of random weights; what it computes does not matter, how long it takes does."""
    return _random(build_layer(config, half), to)


def random_model(config: Any, blocks: list[Block], to: dict[str, Any]) -> PuzzleForCausalLM:
    """A model of random weights whose layers hold `blocks`."""
    model = build_model(config, blocks)
    kept = model.model.rotary_emb
    model.model.rotary_emb = torch.nn.Module()
    _random(model, to)
    model.model.rotary_emb = kept.to(to["device"])
    model.tie_weights()
    return model


def _random(module: Any, to: dict[str, Any]) -> Any:
    module = module.to(to["dtype"]).to_empty(device=to["device"])
    for parameter in module.parameters():
        parameter.requires_grad_(False).normal_(std=0.02)
    return module.eval()


def _turns(passes: Sequence[Run]) -> Callable[[], float]:
    """Seconds of the pass whose turn it is."""
    turn = cycle(passes)
    for _ in range(2):
        next(turn)()

    def sample_s() -> float:
        begin = time.perf_counter()
        next(turn)()
        return time.perf_counter() - begin

    return sample_s


def _graph(passes: Sequence[Run]) -> Callable[[], float]:
    """Seconds of a pass among others in a graph, which is not longer than it must be."""
    needed = math.ceil(LONGEST_GRAPH_S / warm_s(passes[0]))
    some = list(passes[:needed])
    turns = max(1, min(needed, MOST_PASSES) // len(some))
    return captured_or_launched(some * turns).sample_s
