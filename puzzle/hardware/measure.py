"""Time halves of layers on the device at hand: the modules that are exported, with a KV cache.

What is timed is what would run, in one pass that reads prompts or makes one token each at a given
context: `PuzzleLayer` with torch's kernels, or the same half on our own (`kernel_half.py`). Weights
rotate among copies that no cache holds, as those of a whole model do. Seconds are medians; on CUDA
between events.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any

import torch

from puzzle.blocks.variant import Block, NoOp
from puzzle.export.modeling_puzzle import CACHE, PuzzleForCausalLM, PuzzleLayer, layer_masks
from puzzle.modules import build_layer, build_model, child_config, rotary

ROTATED_BYTES = 256 * 2**20  # weights in turn: more than the caches of processors and GPUs
FEWEST, LEAST_S = 7, 0.3  # samples of a pass, and seconds of sampling
EMPTY = Block(NoOp(), NoOp())


@dataclass(frozen=True)
class Case:
    """One timing: a half (None: what lies outside the layers) in one pass."""

    half: Block | None
    phase: str  # prefill or decode
    batch: int
    length: int  # of the prompts, or the context that the new token sees
    kernels: str = "torch"  # whose they are: torch or triton


class Bench:
    """Times cases of one parent's halves; holds the random layers of the last half only."""

    def __init__(self, config: Any, dtype: torch.dtype, device: str) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self._built: tuple[Block | None, list[Any]] | None = None

    def time(self, case: Case) -> tuple[float, float]:
        """Seconds of one pass, and the middle half's spread over them."""
        with torch.inference_mode():
            if case.half is None:
                return self._sample(self._outside(case))
            ask = self._on_kernels if case.kernels == "triton" else self._on_torch
            return self._sample(ask(case, case.half))

    @cached_property
    def _rotary(self) -> Any:
        return rotary(child_config(self.config, [EMPTY])).to(self.device)

    def _on_kernels(self, case: Case, half: Block) -> Callable[[], object]:
        from puzzle.hardware.kernel_half import KernelHalf, Past

        halves = cycle([KernelHalf(layer) for layer in self._layers(half)])
        stream, positions = self._stream(case)
        keys, values = self._past(half, case.batch, case.length)
        cos, sin = self._rotary(stream, position_ids=positions)
        return lambda: next(halves)(stream, Past(cos, sin, keys, values))

    def _layers(self, half: Block) -> list[PuzzleLayer]:
        return self._copies(half, lambda: random_layer(self.config, half, self._to))

    def _stream(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream that enters a pass, and the positions of its tokens."""
        tokens, past = (case.length, 0) if case.phase == "prefill" else (1, case.length - 1)
        stream = torch.randn(case.batch, tokens, self.config.hidden_size, **self._to)
        return stream, torch.arange(past, past + tokens, device=self.device).unsqueeze(0)

    def _on_torch(self, case: Case, half: Block) -> Callable[[], object]:
        layers = cycle(self._layers(half))
        stream, positions = self._stream(case)
        past = case.length - stream.shape[1]
        keys, values = self._past(half, case.batch, past)
        window = half.attention.sees
        masks = layer_masks(
            child_config(self.config, [half]),
            {window},
            inputs_embeds=stream,
            attention_mask=None,
            cache=filled_cache(keys, values),
            position_ids=positions,
        )
        context = {
            "attention_mask": masks[window],
            "position_ids": positions,
            "position_embeddings": self._rotary(stream, position_ids=positions),
            "use_cache": True,
        }

        def run() -> object:
            return next(layers)(stream, **context, **{CACHE: filled_cache(keys, values)})

        return run

    def _past(self, half: Block, batch: int, past: int) -> tuple[torch.Tensor, torch.Tensor]:
        heads = half.attention.cached_heads
        head_dim = child_config(self.config, [half]).head_dim
        kept = torch.randn(2, batch, heads, past, head_dim, **self._to)
        return kept[0], kept[1]

    def _outside(self, case: Case) -> Callable[[], object]:
        models = cycle(self._copies(None, lambda: random_model(self.config, [EMPTY], self._to)))
        tokens = case.length if case.phase == "prefill" else 1
        inputs = torch.ones(case.batch, tokens, dtype=torch.long, device=self.device)

        def run() -> object:
            return next(models)(inputs, logits_to_keep=1).logits[:, -1].argmax(-1)

        return run

    def _copies(self, half: Block | None, make: Callable[[], Any]) -> list[Any]:
        if self._built is None or self._built[0] != half:
            self._built = None
            first = make()
            held = sum(t.numel() * t.element_size() for t in first.state_dict().values())
            others = [make() for _ in range(min(255, ROTATED_BYTES // max(1, held)))]
            self._built = (half, [first, *others])
        return self._built[1]

    def _sample(self, run: Callable[[], object]) -> tuple[float, float]:
        for _ in range(2):
            run()
        clock = _cuda_s if self.device.type == "cuda" else _cpu_s
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < FEWEST or time.perf_counter() - begin < LEAST_S:
            times.append(clock(run))
        quarters = statistics.quantiles(times, n=4)
        return quarters[1], (quarters[2] - quarters[0]) / quarters[1]

    @property
    def _to(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device}


def filled_cache(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """A cache whose first layer holds these [B, K, T, h]; they are not written to."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    if keys.shape[2]:
        cache.update(keys, values, 0)
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


def _cpu_s(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _cuda_s(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3
