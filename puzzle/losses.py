"""What healing minimizes: the distance to a teacher, and to the text itself.

`L = cosine sum_layers mean (1 - cos(h_c, h_p)) + kl mean KL(p || c) - lm mean log c(next token)`,
means over tokens, temperature 1 (Puzzle, arXiv 2411.19146, section 5; Minitron, 2407.14679).

Logits are made a few tokens at a time, from the hidden states that leave the models, and are gone
once their slopes are known: a teacher's are never stored. Slopes wait for those of as many tokens
as the head is wide, so that its gradient is passed over once for all of them; together they are no
larger than it, and nothing else grows with the vocabulary.

Legend: S sequences, T tokens, N = S T, B and n some of them, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from puzzle.device import at_once

ROOM = 2**23  # logits of one model made at once, on a CPU


@dataclass(frozen=True)
class Factors:
    """How much each loss counts; one that counts nothing is not trained on."""

    cosine: float = 1.0
    kl: float = 1.0
    lm: float = 0.0

    @property
    def guided(self) -> bool:
        """Whether a teacher is needed."""
        return self.cosine > 0 or self.kl > 0


@dataclass(frozen=True)
class End:
    """Where a model's stream ends: normed hidden states [N, D], and the head they meet [V, D]."""

    last_ND: torch.Tensor
    head_VD: torch.Tensor

    def to(self, dtype: torch.dtype) -> End:
        """The same in another dtype."""
        return End(self.last_ND.to(dtype), self.head_VD.to(dtype))

    def log_softmax(self, rows: slice) -> torch.Tensor:
        """Log-probabilities of some tokens [n, V], in fp32 whatever they are multiplied in."""
        return (self.last_ND[rows] @ self.head_VD.T).float().log_softmax(dim=-1)


@dataclass(frozen=True)
class Text:
    """The token that follows each [N], and what each counts in the means of KL and LM [N]."""

    next_N: torch.Tensor
    share_N: torch.Tensor
    next_share_N: torch.Tensor  # nothing follows the last token of a sequence

    @classmethod
    def of(cls, tokens_ST: torch.Tensor, share_S: torch.Tensor) -> Text:
        """Of sequences whose tokens count `share_S` each; over a batch's tokens they sum to 1."""
        length = tokens_ST.shape[1]
        share_ST = share_S[:, None].repeat(1, length)
        next_share_ST = share_ST * (length / max(1, length - 1))
        next_share_ST[:, -1] = 0
        following_ST = tokens_ST.roll(-1, dims=1)
        return cls(following_ST.flatten(), share_ST.flatten(), next_share_ST.flatten())


def cosine_loss(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], share_S: torch.Tensor
) -> torch.Tensor:
    """`1 - cos` summed over pairs of streams [S, T, D], and over tokens by their shares."""
    total = share_S.new_zeros(())
    for one, other in pairs:
        similar_ST = F.cosine_similarity(one.float(), other.float(), dim=-1)
        total = total + ((1 - similar_ST) * share_S[:, None]).sum()
    return total


def head_loss(
    student: End, teacher: End | None, text: Text, factors: Factors
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`kl KL(teacher || student) + lm LM`, and both as they are; no KL without a teacher."""
    ends = [student.last_ND, student.head_VD]
    if not torch.is_grad_enabled():  # which a function of autograd does not see by itself
        ends = [end.detach() for end in ends]
    apply: Any = _HeadLoss.apply  # which torch leaves untyped
    total, kl, lm = apply(*ends, teacher, text, factors)
    return total, {"lm": lm} if teacher is None else {"kl": kl, "lm": lm}


class _HeadLoss(torch.autograd.Function):
    """The losses and, in the same pass over the tokens, their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        last_ND: torch.Tensor,
        head_VD: torch.Tensor,
        teacher: End | None,
        text: Text,
        factors: Factors,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = _dtype(last_ND)
        student, teacher = End(last_ND, head_VD).to(dtype), teacher and teacher.to(dtype)
        kl, lm = torch.zeros(2, device=last_ND.device)
        learns = any(ctx.needs_input_grad)
        slopes = [torch.zeros_like(t, dtype=torch.float32) for t in (last_ND, head_VD) if learns]
        vocabulary, width = head_VD.shape
        size = max(1, at_once(ROOM) // vocabulary)
        for some in _slices(0, len(last_ND), max(size, width)):
            slope_BV = last_ND.new_empty(some.stop - some.start, vocabulary, dtype=dtype)
            for rows, part_nV in zip(_slices(some.start, some.stop, size), slope_BV.split(size)):
                kl_n, lm_n, slope_nV = _chunk(student, teacher, text, factors, rows)
                kl, lm = kl + kl_n.sum(), lm + lm_n.sum()
                part_nV.copy_(slope_nV)
            if learns:
                slopes[0][some] = slope_BV @ student.head_VD
                _add_product(slopes[1], slope_BV.T, student.last_ND[some])
        ctx.slopes, ctx.dtypes = slopes, (last_ND.dtype, head_VD.dtype)
        ctx.mark_non_differentiable(kl, lm)
        return factors.kl * kl + factors.lm * lm, kl, lm

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        slopes = ((slope * grads[0]).to(dtype) for slope, dtype in zip(ctx.slopes, ctx.dtypes))
        return *slopes, None, None, None


def _add_product(total_VD: torch.Tensor, one_VB: torch.Tensor, other_BD: torch.Tensor) -> None:
    """Add a product to a sum in fp32, in one pass over it where the factors are that too."""
    if one_VB.dtype == total_VD.dtype:
        total_VD.addmm_(one_VB, other_BD)
    else:
        total_VD += one_VB @ other_BD


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    """What matrices are multiplied in: autocast's, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    yield from (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _chunk(
    student: End, teacher: End | None, text: Text, factors: Factors, rows: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """KL and LM of some tokens by their shares [n], and the slope at their logits [n, V].

    d KL / d logits = q - p, d LM / d logits = q - [next token]; p the teacher's, q the student's.
    """
    next_n1, share_n1 = text.next_N[rows, None], text.share_N[rows, None]
    log_q_nV = student.log_softmax(rows)
    lm_n = -log_q_nV.gather(1, next_n1)[:, 0] * text.next_share_N[rows]
    pull_n1 = factors.lm * text.next_share_N[rows, None]
    if teacher is None:
        slope_nV = log_q_nV.exp_().mul_(pull_n1)
        return torch.zeros_like(lm_n), lm_n, slope_nV.scatter_add_(1, next_n1, -pull_n1)
    log_p_nV = teacher.log_softmax(rows)
    p_nV = log_p_nV.exp()
    kl_n = torch.linalg.vecdot(p_nV, log_p_nV.sub_(log_q_nV)) * share_n1[:, 0]
    push_n1 = factors.kl * share_n1
    slope_nV = log_q_nV.exp_().mul_(push_n1 + pull_n1).sub_(p_nV.mul_(push_n1))
    return kl_n, lm_n, slope_nV.scatter_add_(1, next_n1, -pull_n1)
