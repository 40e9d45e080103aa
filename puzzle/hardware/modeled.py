"""A source that adds up kernels: halves of layers and what lies outside, on one or several GPUs.

With tensor parallel every GPU holds its share of the heads, of the FFN's channels and of the
vocabulary, and the halves end in an all-reduce. The residual stream is whole on every GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from puzzle.blocks.sizes import Matrix
from puzzle.blocks.variant import GQA, Block
from puzzle.budget import Budget, Workload
from puzzle.hardware.devices import BYTES
from puzzle.hardware.kernels import ACTIVATION_BYTES, Heads, Kernels, Roofline
from puzzle.hardware.roofline import outside_dtype
from puzzle.hardware.source import Step, Timed
from puzzle.shape import Shape

# Choosing a token passes over the logits, in float32, this often: cast, penalties, softmax, draw.
LOGIT_PASSES = 4


@dataclass(frozen=True)
class Modeled:
    """Seconds of halves from seconds of kernels."""

    kernels: Kernels
    shape: Shape
    workload: Workload
    gpus: int = 1

    def half(self, half: Block, step: Step) -> Timed:
        """Attention or FFN of one layer, its norm and all-reduce included."""
        if isinstance(half.attention, GQA):
            return self._attention(half.attention, step)
        return self._maps(half.attention.matrices(self.shape) + half.ffn.matrices(self.shape), step)

    def outside(self, step: Step) -> Timed:
        """Embedding, final norm, head and the choice of tokens."""
        shape, kernels = self.shape, self.kernels
        logits = step.outputs * shape.vocab_size
        head = kernels.gemm(
            step.outputs,
            shape.hidden_size,
            shape.vocab_size / self.gpus,
            outside_dtype(self.workload),
        )
        drawn = kernels.elementwise(LOGIT_PASSES * logits * BYTES["float32"] / ACTIVATION_BYTES)
        lookup = kernels.elementwise(2 * step.rows * shape.hidden_size)
        return lookup + self._norm(step) + head + drawn

    def _maps(self, matrices: tuple[Matrix, ...], step: Step) -> Timed:
        """Norm, GEMMs with a pass over the activations between any two, all-reduce.

        GPUs share the outputs of every matrix but the last, and the inputs of the last.
        """
        if not matrices:
            return Timed()
        seconds = self._norm(step)
        *firsts, last = matrices
        shares: list[tuple[Matrix, float, float]] = [
            *((matrix, matrix.size_in, matrix.size_out / self.gpus) for matrix in firsts),
            (last, last.size_in / self.gpus, last.size_out),
        ]
        for matrix, size_in, size_out in shares:
            seconds += self._matrix(matrix, step, size_in, size_out)
        for (before, _, out), (after, into, _) in pairwise(shares):
            seconds += self.kernels.elementwise(step.rows * (out * before.used + into * after.used))
        if last.used > 1:
            seconds += self.kernels.elementwise(step.rows * (last.used + 1) * last.size_out)
        return seconds + self._sum(step)

    def _matrix(self, matrix: Matrix, step: Step, size_in: float, size_out: float) -> Timed:
        if matrix.experts == 1:
            return self._gemm(step, size_in, size_out)
        rows, hit = step.rows * matrix.used, matrix.hit(step.rows)
        return self.kernels.grouped_gemm(rows, hit, size_in, size_out, self.workload.weights)

    def _attention(self, variant: GQA, step: Step) -> Timed:
        shape, kernels, window = self.shape, self.kernels, variant.window
        kv_heads = max(1.0, variant.kv_heads / self.gpus)
        queries = variant.query_heads(shape) / self.gpus
        heads = Heads(queries, kv_heads, shape.head_dim, self.workload.kv)
        qkv_size = (heads.query + 2 * kv_heads) * shape.head_dim
        seconds = self._norm(step) + self._gemm(step, shape.hidden_size, qkv_size)
        if shape.qk_norm:
            seconds += kernels.elementwise(2 * step.rows * (qkv_size - kv_heads * shape.head_dim))
        seconds += kernels.elementwise(2 * step.rows * qkv_size)  # rotate, and write the cache
        if step.sequences:
            seconds += kernels.decode_attention(heads, step.sequences, step.context(window))
        if step.prompts:
            pairs = step.pairs(window)
            seconds += kernels.prefill_attention(heads, step.prompts, step.prompt_tokens, pairs)
        seconds += self._gemm(step, heads.query * shape.head_dim, shape.hidden_size)
        return seconds + self._sum(step)

    def _norm(self, step: Step) -> Timed:
        return self.kernels.elementwise(4 * step.rows * self.shape.hidden_size)

    def _gemm(self, step: Step, size_in: float, size_out: float) -> Timed:
        return self.kernels.gemm(step.rows, size_in, size_out, self.workload.weights)

    def _sum(self, step: Step) -> Timed:
        return self.kernels.all_reduce(step.rows * self.shape.hidden_size, self.gpus)


def source_of(shape: Shape, budget: Budget) -> Modeled | None:
    """Where a budget's seconds come from unless told: None is the static roofline of one GPU."""
    if budget.gpus == 1:
        return None
    return Modeled(Roofline(budget.device), shape, budget.workload, budget.gpus)
