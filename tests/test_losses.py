"""Losses in chunks against their dense formulas, values and gradients, and the memory they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from puzzle import losses
from puzzle.losses import End, Factors, Text, cosine_loss, head_loss


def ends(tokens: int, hidden: tuple[int, int], vocabulary: int) -> tuple[End, End]:
    """A student that asks for gradients, and a teacher of another width."""
    draw = torch.Generator().manual_seed(tokens)
    made = [
        End(
            torch.randn(tokens, size, generator=draw),
            torch.randn(vocabulary, size, generator=draw),
        )
        for size in hidden
    ]
    for tensor in (made[0].last_ND, made[0].head_VD):
        tensor.requires_grad_()
    return made[0], made[1]


def dense(student: End, teacher: End, tokens_ST: torch.Tensor, share_S: torch.Tensor) -> Any:
    """(KL, LM) as one would write them, in float64."""
    log_q, log_p = (
        (end.last_ND.double() @ end.head_VD.double().T)
        .log_softmax(-1)
        .unflatten(0, tokens_ST.shape)
        for end in (student, teacher)
    )
    kl_ST = (log_p.exp() * (log_p - log_q)).sum(-1)
    length = tokens_ST.shape[1]
    kl = (kl_ST * share_S[:, None]).sum()
    if length == 1:
        return kl, torch.zeros_like(kl)
    lm_ST = F.cross_entropy(log_q[:, :-1].transpose(1, 2), tokens_ST[:, 1:], reduction="none")
    return kl, (lm_ST.mean(-1) * share_S * length).sum()


@pytest.mark.parametrize(
    ("sequences", "length", "vocabulary", "room"),
    [(1, 1, 2, 1), (3, 21, 97, 97), (3, 21, 97, 10 * 97), (2, 50, 1000, 7001), (4, 25, 63, 10**6)],
)
@pytest.mark.parametrize("factors", [Factors(kl=1), Factors(kl=0.7, lm=0.4), Factors(kl=0, lm=2)])
def test_chunks_are_the_dense_losses_and_gradients(
    sequences: int,
    length: int,
    vocabulary: int,
    room: int,
    factors: Factors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At odd sizes, chunks of one token, of some, and of all; sequences count differently."""
    monkeypatch.setattr(losses, "ROOM", room)
    student, teacher = ends(sequences * length, (13, 8), vocabulary)
    draw = torch.Generator().manual_seed(1)
    tokens_ST = torch.randint(vocabulary, (sequences, length), generator=draw)
    share_S = torch.rand(sequences, generator=draw)
    kl, lm = dense(student, teacher, tokens_ST, share_S)
    wanted = torch.autograd.grad(
        (factors.kl * kl + factors.lm * lm) * 3, (student.last_ND, student.head_VD)
    )
    total, parts = head_loss(student, teacher, Text.of(tokens_ST, share_S), factors)
    (total * 3).backward()
    torch.testing.assert_close(parts["kl"], kl.float())
    torch.testing.assert_close(parts["lm"], lm.float())
    for tensor, grad in zip((student.last_ND, student.head_VD), wanted):
        torch.testing.assert_close(tensor.grad, grad.float(), rtol=1e-4, atol=1e-5)


def test_without_a_teacher_only_the_text_is_learned() -> None:
    student, teacher = ends(30, (8, 8), 50)
    text = Text.of(torch.arange(30).view(3, 10), torch.full((3,), 1 / 30))
    alone, parts = head_loss(student, None, text, Factors(kl=1, lm=1))
    assert set(parts) == {"lm"}
    both, _ = head_loss(student, teacher, text, Factors(kl=0, lm=1))
    torch.testing.assert_close(alone, both)


def test_a_model_loses_nothing_against_itself() -> None:
    student, _ = ends(30, (8, 8), 50)
    text = Text.of(torch.arange(30).view(3, 10), torch.full((3,), 1 / 30))
    total, _ = head_loss(student, student, text, Factors())
    total.backward()
    assert float(total.detach()) == pytest.approx(0, abs=1e-6)
    assert float(student.head_VD.grad.abs().max()) == pytest.approx(0, abs=1e-6)


def test_bfloat16_multiplies_and_fp32_sums() -> None:
    student, teacher = ends(64, (16, 16), 200)
    text = Text.of(torch.arange(64).view(4, 16), torch.full((4,), 1 / 64))
    exact, _ = head_loss(student, teacher, text, Factors())
    exact.backward()
    wanted, student.head_VD.grad = student.head_VD.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        total, parts = head_loss(student, teacher, text, Factors())
    total.backward()
    assert parts["kl"].dtype == student.head_VD.grad.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=0.02, atol=0)
    torch.testing.assert_close(student.head_VD.grad, wanted, rtol=0.1, atol=0.02)


class Largest(TorchDispatchMode):
    """Notes the largest tensor any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return made


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = ends(64, (8, 8), 50)
    text = Text.of(torch.zeros(4, 16, dtype=torch.long), torch.full((4,), 1 / 64))
    wanted, _ = head_loss(student, teacher, text, Factors())
    monkeypatch.setattr(losses, "_add_product", None)
    with torch.no_grad():
        found, _ = head_loss(student, teacher, text, Factors())
    assert torch.equal(found, wanted)


def test_no_tensor_grows_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the head and its gradient: 4096 tokens, where dense logits are 16 times ROOM."""
    monkeypatch.setattr(losses, "ROOM", 2**18)
    largest = []
    for vocabulary in (2**10, 2**13):
        student, teacher = ends(4096, (4, 4), vocabulary)
        text = Text.of(torch.zeros(16, 256, dtype=torch.long), torch.full((16,), 1 / 4096))
        with Largest() as seen:
            head_loss(student, teacher, text, Factors())[0].backward()
        largest.append(seen.numel)
    assert largest == [2**18, 2**18]


def test_cosine_is_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randn(2, 3, 5, 7, generator=draw)) for _ in range(4)]
    share_S = torch.tensor([0.1, 0.2, 0.05])
    wanted = 0.0
    for one, other in pairs:
        for x_TD, y_TD, share in zip(one, other, share_S):
            similar_T = (x_TD * y_TD).sum(-1) / (x_TD.norm(dim=-1) * y_TD.norm(dim=-1))
            wanted += float(((1 - similar_T) * share).sum())
    assert float(cosine_loss(pairs, share_S)) == pytest.approx(wanted, rel=1e-5)
