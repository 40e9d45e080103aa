"""What one layer's variants learn from: its streams, and the parent's own halves as the teacher.

Legend: S sequences, T tokens, N tokens of a batch, D hidden, F features of the last matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from puzzle import records
from puzzle.blocks.attention import initial_attention
from puzzle.blocks.ffn import initial_ffn, kept_channels
from puzzle.blocks.moe import expert_contributions
from puzzle.blocks.refit import NormalEquations, token_weights
from puzzle.blocks.variant import FFN, Block, MoE, NoOp
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.modules import Weights, build_layer
from puzzle.parent import Parent
from puzzle.run import Run

HELD_OUT = 8  # one sequence in eight judges, the others teach
BATCH_SEQUENCES = 8  # of one forward pass without gradients
LAST_MATRICES = (
    "self_attn.o_proj",
    "self_attn.linear_attn",
    "mlp.down_proj",
    "mlp.linear_mlp",
)


@dataclass(frozen=True)
class Streams:
    """A layer's input, middle (between its halves) and output [S, T, D]; token weights [S, T]."""

    enter: torch.Tensor
    middle: torch.Tensor
    leave: torch.Tensor
    weight: torch.Tensor

    def __getitem__(self, which: torch.Tensor | slice) -> Streams:
        return Streams(self.enter[which], self.middle[which], self.leave[which], self.weight[which])

    def batches(self) -> Iterator[Streams]:
        """The sequences in order, a few at a time."""
        for start in range(0, len(self.enter), BATCH_SEQUENCES):
            yield self[start : start + BATCH_SEQUENCES]


@dataclass(frozen=True)
class Lesson:
    """One parent layer with the streams that teach (`fit`) and those that judge (`held`)."""

    parent: Parent
    block: Block
    weights: Weights
    layer: PuzzleLayer
    context: dict[str, Any]
    fit: Streams
    held: Streams

    @classmethod
    @torch.no_grad()
    def read(cls, run: Run, parent: Parent, layer: int) -> Lesson:
        """The lesson of one layer, from the trace of the calibration split."""
        enter = run.load_tensors(records.hidden("calibration", layer))["h"]
        leave = run.load_tensors(records.hidden("calibration", layer + 1))["h"]
        weights = parent.layer_weights(layer)
        module = build_layer(parent.config, parent.blocks[layer], weights)
        context = parent.context(enter[:1], module.window)
        middle = torch.cat([module.attend(h, **context) for h in enter.split(BATCH_SEQUENCES)])
        streams = Streams(enter, middle, leave, token_weights(leave))
        held = torch.arange(len(enter)) % HELD_OUT == HELD_OUT - 1
        block = parent.blocks[layer]
        return cls(parent, block, weights, module, context, streams[~held], streams[held])

    def loss(self, module: PuzzleLayer, streams: Streams) -> torch.Tensor:
        """Weighted `|o_c - o_p|^2 / |o_p - h|^2`, o the layer's output with this half in place.

        The other half is the parent's, frozen (decoupled distillation). Weights are 1 / |o_p|^2
        per token, so that no massive activation decides alone; the denominator is what a layer
        that does nothing would lose, so 1 means no better than removing the layer.
        """
        if module.mlp is None:
            output = self.layer.feed(module.attend(streams.enter, **self.context))
        else:
            output = module.feed(streams.middle)
        error = (output - streams.leave).float().square().sum(-1) * streams.weight
        nothing = (streams.enter - streams.leave).float().square().sum(-1) * streams.weight
        return error.sum() / nothing.sum()

    @torch.no_grad()
    def held_out_loss(self, half: Block, weights: Weights) -> float:
        """The loss of a half on the sequences that judge."""
        module = build_layer(self.parent.config, half, weights)
        return float(self.loss(module, self.held))

    def sliced(self, half: Block) -> Weights:
        """The half as computed from the parent's weights alone."""
        if isinstance(half.ffn, NoOp):
            return initial_attention(half.attention, self.weights, self.parent.shape.head_dim)
        parts = self.experts if isinstance(self.block.ffn, MoE) else self.channels
        return initial_ffn(half.ffn, self.weights, parts)

    def refit(self, half: Block, sliced: Weights) -> Weights:
        """`sliced` with its last matrix solved by least squares against the parent's half.

        A half without one last matrix for all tokens, as experts are, stays as it is.
        """
        name = _last_matrix(sliced)
        if name is None:
            return sliced
        if isinstance(half.ffn, FFN):
            kept = kept_channels(self.channels, half.ffn.intermediate_size)
            equations = self.ffn_statistics[0].features(kept)
        else:
            equations, _ = self._statistics(half, sliced)
        return sliced | {f"{name}.weight": equations.solve(sliced[f"{name}.weight"])}

    @cached_property
    def channels(self) -> torch.Tensor:
        """The parent's FFN channels by contribution, `mean |x_k| * |W_down[:, k]|`, best first."""
        down_DF = self.weights["mlp.down_proj.weight"]
        contribution = self.ffn_statistics[1] * down_DF.float().norm(dim=0)
        return contribution.argsort(descending=True, stable=True)

    @cached_property
    @torch.no_grad()
    def experts(self) -> torch.Tensor:
        """The parent's experts by contribution on the streams that teach, best first."""
        norm, mlp = self.layer.post_attention_layernorm, self.layer.mlp
        assert norm is not None
        assert mlp is not None
        router = mlp.get_submodule("router" if "mlp.router.weight" in self.weights else "gate")
        contribution = sum(
            expert_contributions(router, mlp.get_submodule("experts"), norm(middle).flatten(0, 1))
            for middle in (streams.middle for streams in self.fit.batches())
        )
        assert isinstance(contribution, torch.Tensor)
        return contribution.argsort(descending=True, stable=True)

    @cached_property
    def ffn_statistics(self) -> tuple[NormalEquations, torch.Tensor]:
        """Normal equations over all of the parent's FFN channels, and mean |x| [F] of each."""
        own = Block(NoOp(), self.block.ffn)
        return self._statistics(own, {n: w for n, w in self.weights.items() if _is_ffn(n)})

    @torch.no_grad()
    def _statistics(self, half: Block, weights: Weights) -> tuple[NormalEquations, torch.Tensor]:
        """One pass of a half over the streams that teach, seen from its last matrix."""
        module, name = build_layer(self.parent.config, half, weights), _last_matrix(weights)
        assert name is not None
        outputs, features = weights[f"{name}.weight"].shape
        equations = NormalEquations.zeros(features, outputs)
        magnitude, tokens = torch.zeros(features, dtype=torch.float64), 0
        bias = weights.get(f"{name}.bias", torch.zeros(outputs))
        for streams in self.fit.batches():
            x_NF = self._input_of(module, module.get_submodule(name), streams)
            wanted = streams.leave - streams.middle
            if module.mlp is None:
                wanted = streams.middle - streams.enter
            y_ND = (wanted.float() - bias.float()).flatten(0, 1)
            equations = equations.plus(x_NF, y_ND, streams.weight.flatten())
            magnitude += x_NF.abs().sum(dim=0).double()
            tokens += len(x_NF)
        return equations, (magnitude / tokens).float()

    def _input_of(self, module: PuzzleLayer, matrix: nn.Module, streams: Streams) -> torch.Tensor:
        """What enters `matrix` when the half runs on these streams [N, F]."""
        seen: list[torch.Tensor] = []
        handle = matrix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            if module.mlp is None:
                module.attend(streams.enter, **self.context)
            else:
                module.feed(streams.middle)
        finally:
            handle.remove()
        return seen[0].float().flatten(0, 1)


def _is_ffn(name: str) -> bool:
    return name.startswith(("mlp.", "post_attention_layernorm."))


def _last_matrix(weights: Weights) -> str | None:
    return next((name for name in LAST_MATRICES if f"{name}.weight" in weights), None)
