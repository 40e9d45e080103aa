"""What one layer's variants learn from: its streams, and the parent's own halves as the teacher.

They learn from the calibration split and are judged on the scoring split by the Fisher score, the
same by which the search will choose among them: text that the parent will meet decides, whatever
text was there to learn from.

Legend: S sequences, T tokens, N tokens of a batch, D hidden, F features of the last matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from puzzle import records
from puzzle.blocks.attention import initial_attention, keep_groups
from puzzle.blocks.ffn import initial_ffn, kept_channels
from puzzle.blocks.kind import AttentionVariant
from puzzle.blocks.moe import expert_contributions
from puzzle.blocks.refit import NormalEquations, Tokens, token_weights
from puzzle.blocks.variant import FFN, GQA, Block, Groups, MoE, NoOp
from puzzle.config import Loss
from puzzle.device import at_once
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.fisher import corrected, per_token, relative_change
from puzzle.library import own_half
from puzzle.modules import Weights, build_layer
from puzzle.parent import Parent
from puzzle.run import Run
from puzzle.window import Window

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
        size = at_once(BATCH_SEQUENCES)
        for start in range(0, len(self.enter), size):
            yield self[start : start + size]


@dataclass(frozen=True)
class Lesson:
    """One parent layer with the streams that teach and those that judge."""

    parent: Parent
    block: Block
    weights: Weights
    layer: PuzzleLayer
    context: dict[str, Any]
    teach: Streams
    judge: Streams
    gradient: torch.Tensor  # Fisher gradients [K, S, T, D] where the judged streams leave

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.teach.weight.shape[1]

    @classmethod
    @torch.no_grad()
    def read(cls, run: Run, parent: Parent, layer: int, window: Window) -> Lesson:
        """The lesson of one layer, from the trace of a window and of the scoring split."""
        block, weights = parent.blocks[layer], parent.layer_weights(layer)
        module = build_layer(parent.config, block, weights)
        gradient = run.load_tensors(records.gradient(layer + 1))["g"]
        context = parent.context(gradient[0, :1], module.window)

        def streams(*splits: str) -> Streams:
            enter, leave = (
                torch.cat([run.load_tensors(records.hidden(split, place))["h"] for split in splits])
                for place in (layer, layer + 1)
            )
            batches = enter.split(at_once(BATCH_SEQUENCES))
            middle = torch.cat([module.attend(batch, **context) for batch in batches])
            return Streams(enter, middle, leave, token_weights(leave))

        teach, judge = streams(*window.parts), streams("scoring")
        return cls(parent, block, weights, module, context, teach, judge, gradient)

    def output(self, module: PuzzleLayer, streams: Streams) -> torch.Tensor:
        """What the layer makes of the streams with this piece in place [S, T, D].

        A half has the parent's other half, frozen, before or behind it.
        """
        if module.mlp is None:
            return self.layer.feed(module.attend(streams.enter, **self.context))
        if module.self_attn is None:
            return module.feed(streams.middle)
        return module(streams.enter, **self.context)

    def loss(self, module: PuzzleLayer, streams: Streams, kind: Loss = "mse") -> torch.Tensor:
        """How far the layer's output o_c is from the parent's o_p with this piece in place.

        `mse` is the weighted `|o_c - o_p|^2 / |o_p - h|^2`: weights are 1 / |o_p|^2 per token, so
        that no massive activation decides alone, and 1 is what removing the layer would lose.
        `fisher` is the same in the layer's Fisher metric, where directions count by what they do
        to the next token; `cosine` the mean of 1 - cos(o_c, o_p).
        """
        output = self.output(module, streams)
        if kind == "cosine":
            return (1 - F.cosine_similarity(output.float(), streams.leave.float(), dim=-1)).mean()
        changes = output - streams.leave, streams.enter - streams.leave
        if kind == "fisher":
            changes = changes[0].float() @ self.metric, changes[1].float() @ self.metric
        error, nothing = ((d.float().square().sum(-1) * streams.weight).sum() for d in changes)
        return error / nothing

    @cached_property
    def metric(self) -> torch.Tensor:
        """R [D, D] with `R R^T = E g g^T`: |d R|^2 is twice the KL of a change d, on average."""
        g_ND = self.gradient.flatten(0, -2).double()
        values, vectors = torch.linalg.eigh(g_ND.T @ g_ND / len(g_ND))
        return (vectors * values.clamp_min(0).sqrt()).float()

    @torch.no_grad()
    def kl(self, module: PuzzleLayer) -> float:
        """The score of a piece on the streams that judge: the KL per token it costs."""
        output = torch.cat([self.output(module, streams) for streams in self.judge.batches()])
        change = output - self.judge.leave
        fisher = float(per_token(self.gradient, change).mean())
        return corrected(fisher, relative_change(change, self.judge.leave))

    def built(self, piece: Block, weights: Weights) -> PuzzleLayer:
        """A piece as a frozen module."""
        return build_layer(self.parent.config, piece, weights)

    def starts(self, half: Block) -> dict[str, Weights]:
        """The half as computed from the parent's weights alone, by the name of the way.

        An FFN keeps its most important channels by either measure of importance, attention its
        groups of heads likewise or its KV heads pooled, a mixture its most important experts.
        """
        if isinstance(half.ffn, NoOp):
            return self._attentions(half.attention)
        orders = {"sliced": torch.empty(0)}
        if isinstance(half.ffn, FFN):
            orders = self.channels
        if isinstance(half.ffn, MoE):
            orders = {"sliced": self.experts}
        return {name: initial_ffn(half.ffn, self.weights, order) for name, order in orders.items()}

    def _attentions(self, variant: AttentionVariant) -> dict[str, Weights]:
        head_dim, own = self.parent.shape.head_dim, self.block.attention
        found = {}
        if not isinstance(variant, Groups):
            found["sliced"] = initial_attention(variant, self.weights, head_dim)
        if isinstance(variant, GQA) and isinstance(own, GQA) and variant.kv_heads < own.kv_heads:
            for way, missed_HH in self.heads.items():
                found[way] = keep_groups(variant, self.weights, head_dim, missed_HH)
        return found

    def refit(self, half: Block, start: Weights, way: str) -> Weights:
        """A start with its last matrix solved by least squares against the parent's half.

        A half without one last matrix for all tokens, as experts are, stays as it is.
        """
        name = _last_matrix(start)
        if name is None:
            return start
        if isinstance(half.ffn, FFN):
            kept = kept_channels(self.channels[way], half.ffn.intermediate_size)
            equations = self.ffn_statistics[0].features(kept)
        else:
            equations, _ = self._statistics(half, start)
        return start | {f"{name}.weight": equations.solve(start[f"{name}.weight"])}

    @cached_property
    def channels(self) -> dict[str, torch.Tensor]:
        """The parent's FFN channels, best first, by how a start is named.

        `sliced`: by contribution, `mean |x_k| * |W_down[:, k]|`. `fisher`: by the Fisher score of
        removing the channel alone, `E (x_k g . W_down[:, k])^2`.
        """
        down_DF = self.weights["mlp.down_proj.weight"].float()
        importance = {
            "sliced": self.ffn_statistics[1] * down_DF.norm(dim=0),
            "fisher": self._channel_scores(down_DF),
        }
        return {n: i.argsort(descending=True, stable=True) for n, i in importance.items()}

    def _channel_scores(self, down_DF: torch.Tensor) -> torch.Tensor:
        pushes = self._pushes(*self._own_ffn, down_DF)
        return torch.stack([push_NF.square().sum(dim=0) for push_NF in pushes]).sum(dim=0)

    @torch.no_grad()
    def _pushes(
        self, half: Block, weights: Weights, last_DF: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """`x_k g . W[:, k]` of what enters a half's last matrix W [N, F], a sample at a time.

        It is what each feature alone adds to the log-probability of a label, to first order, on
        the streams that judge.
        """
        module, first = self.built(half, weights), 0
        name = _last_matrix(weights)
        assert name is not None
        for streams in self.judge.batches():
            x_NF = self._input_of(module, module.get_submodule(name), streams)
            stop = first + len(streams.enter)
            for g_STD in self.gradient[:, first:stop]:
                yield x_NF * (g_STD.float().flatten(0, 1) @ last_DF)
            first = stop

    @cached_property
    @torch.no_grad()
    def heads(self) -> dict[str, torch.Tensor]:
        """What the parent misses without two of its heads together [H, H], by two measures.

        `contribution`: the weighted energy that they write into the stream. `fisher`: the Fisher
        score of removing them, `E (sum_h x_h g . W_o[:, h])^2`.
        """
        half, size = Block(self.block.attention, NoOp()), self.parent.shape.head_dim
        weights = own_half(self.weights, half)
        output_DF = weights["self_attn.o_proj.weight"].float()
        equations, _ = self._statistics(half, weights)
        energy_FF = equations.gram * (output_DF.T @ output_DF).double()
        energy = energy_FF.unflatten(1, (-1, size)).sum(2).unflatten(0, (-1, size)).sum(1)
        fisher = torch.zeros_like(energy)
        for push_NF in self._pushes(half, weights, output_DF):
            push_NH = push_NF.unflatten(1, (-1, size)).sum(2).double()
            fisher += push_NH.T @ push_NH
        return {"contribution": energy.float(), "fisher": fisher.float()}

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
            for middle in (streams.middle for streams in self.teach.batches())
        )
        assert isinstance(contribution, torch.Tensor)
        return contribution.argsort(descending=True, stable=True)

    @cached_property
    def ffn_statistics(self) -> tuple[NormalEquations, torch.Tensor]:
        """Normal equations over all of the parent's FFN channels, and mean |x| [F] of each."""
        return self._statistics(*self._own_ffn)

    @property
    def _own_ffn(self) -> tuple[Block, Weights]:
        half = Block(NoOp(), self.block.ffn)
        return half, own_half(self.weights, half)

    @torch.no_grad()
    def _statistics(self, half: Block, weights: Weights) -> tuple[NormalEquations, torch.Tensor]:
        """One pass of a half over the streams that teach, seen from its last matrix."""
        module, name = self.built(half, weights), _last_matrix(weights)
        assert name is not None
        outputs, features = weights[f"{name}.weight"].shape
        bias = weights.get(f"{name}.bias", torch.zeros(outputs)).float()
        magnitude = torch.zeros(features, dtype=torch.float64)

        def tokens() -> Iterator[Tokens]:
            for streams in self.teach.batches():
                x_NF = self._input_of(module, module.get_submodule(name), streams)
                wanted = streams.leave - streams.middle
                if module.mlp is None:
                    wanted = streams.middle - streams.enter
                magnitude.add_(x_NF.abs().sum(dim=0))
                yield x_NF, (wanted.float() - bias).flatten(0, 1), streams.weight.flatten()

        equations = NormalEquations.of(tokens(), features, outputs)
        return equations, (magnitude / self.teach.weight.numel()).float()

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


def _last_matrix(weights: Weights) -> str | None:
    return next((name for name in LAST_MATRICES if f"{name}.weight" in weights), None)
