"""Fisher scores against the exact KL and the exact Gauss-Newton product on a tiny vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from puzzle import records
from puzzle.blocks.variant import Block
from puzzle.fisher import corrected, per_sequence, per_token
from puzzle.parent import Parent
from puzzle.run import Run
from puzzle.score import removable, scored
from puzzle.trace import trace

SAMPLES = 1500
EPSILON = 1e-2


@pytest.fixture(scope="module")
def setting(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Parent]:
    run = Run(tmp_path_factory.mktemp("score") / "run")
    parent = Parent(checkpoints["llama"], "llama")
    tokens = torch.randint(0, 97, (6, 8), generator=torch.Generator().manual_seed(2))
    trace(run, parent, {"calibration": tokens, "scoring": tokens}, samples=SAMPLES, seed=0)
    return run, parent


def suffix(parent: Parent, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from the stream entering `layer` to the logits."""
    modules = [parent.layer(above) for above in range(layer, parent.shape.layers)]
    head = parent.head()
    context = parent.context(torch.zeros(1, 8, parent.shape.hidden_size), None)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        for module in modules:
            hidden = module(hidden, **context)
        return head(hidden)

    return logits


def exact_kl(
    parent: Parent, layer: int, hidden: torch.Tensor, change: torch.Tensor
) -> torch.Tensor:
    """KL per token of each sequence when the stream entering `layer` moves by `change`."""
    logits = suffix(parent, layer)
    with torch.no_grad():
        p = logits(hidden).double().log_softmax(-1)
        q = logits(hidden + change).double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean(-1)


def gauss_newton(
    parent: Parent, layer: int, hidden: torch.Tensor, change: torch.Tensor
) -> torch.Tensor:
    """`1/2 (J d)' F (J d)` with F = diag(p) - p p', exactly, by one Jacobian-vector product."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
        logits, moved = jvp(suffix(parent, layer), (hidden,), (change,))
    p = logits.softmax(-1)
    variance = (p * moved.square()).sum(-1) - (p * moved).sum(-1).square()
    return variance.mean(-1) / 2


def changes(run: Run, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The stream entering `layer`, its gradients, and a small random change of it."""
    hidden = run.load_tensors(records.hidden("scoring", layer))["h"]
    gradient = run.load_tensors(records.gradient(layer))["g"]
    generator = torch.Generator().manual_seed(3)
    change = EPSILON * hidden.std() * torch.randn(hidden.shape, generator=generator)
    return hidden, gradient, change


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_gauss_newton_form_is_the_exact_kl_to_second_order(
    setting: tuple[Run, Parent], layer: int
) -> None:
    run, parent = setting
    hidden, _, change = changes(run, layer)
    exact = exact_kl(parent, layer, hidden, change)
    torch.testing.assert_close(
        gauss_newton(parent, layer, hidden, change).double(), exact, rtol=0.1, atol=0
    )


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_sequence_form_is_the_gauss_newton_form(
    setting: tuple[Run, Parent], layer: int
) -> None:
    run, parent = setting
    hidden, gradient, change = changes(run, layer)
    exact = gauss_newton(parent, layer, hidden, change)
    estimate = per_sequence(gradient, change)
    assert float(estimate.mean() / exact.mean()) == pytest.approx(1, abs=0.06)


def test_the_per_token_form_agrees_at_the_last_layer_only(setting: tuple[Run, Parent]) -> None:
    run, parent = setting

    def ratio(layer: int) -> float:
        hidden, gradient, change = changes(run, layer)
        constant = change[:, :1].expand_as(change)  # one error at every position
        exact = gauss_newton(parent, layer, hidden, constant)
        return float(per_token(gradient, constant).mean() / exact.mean())

    assert ratio(3) == pytest.approx(1, abs=0.05)
    assert abs(ratio(1) - 1) > 0.05


def test_a_score_is_corrected_by_how_much_the_stream_changes(setting: tuple[Run, Parent]) -> None:
    run, _ = setting
    hidden, gradient, change = changes(run, 2)
    small, large = (scored(gradient, factor * change, hidden) for factor in (1, 3))
    assert large["fisher"] == pytest.approx(9 * small["fisher"], rel=1e-4)
    assert large["loss"] > 9 * small["loss"]  # the larger the change, the more it is understated
    assert small["loss"] == pytest.approx(corrected(small["fisher"], small["change"]))
    assert small["change"] == pytest.approx(
        float((change.norm(dim=-1) / hidden.norm(dim=-1)).square().mean()), rel=1e-4
    )
    assert 0 < small["std_error"] < small["loss"]


def test_nothing_changed_costs_nothing(setting: tuple[Run, Parent]) -> None:
    hidden, gradient, change = changes(setting[0], 2)
    assert scored(gradient, 0 * change, hidden) == {
        "loss": 0,
        "fisher": 0,
        "std_error": 0,
        "change": 0,
    }


def test_runs_that_may_be_removed_hold_nothing_in_every_layer() -> None:
    full, nothing = Block.parse("gqa2+ffn96"), Block.parse("noop+noop")
    space = [[full], [full, nothing], [full, nothing], [full, nothing], [full]]
    assert removable(space, 8) == [(1, 3), (1, 4), (2, 4)]
    assert removable(space, 2) == [(1, 3), (2, 4)]
    assert removable(space, 1) == []
