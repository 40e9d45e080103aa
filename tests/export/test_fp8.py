"""Rounding to float8 is within the format's precision, and a quantized child is near its own."""

from __future__ import annotations

from pathlib import Path

import torch
from children import parse, random_weights

from puzzle.export.fp8 import fake_quantized, rounded
from puzzle.modules import build_model, load
from puzzle.parent import Parent

BLOCKS = parse("gqa2+ffn96 linear+ffn32 noop+linear gqa1+noop")


def test_rounding_is_of_three_bits_behind_the_first() -> None:
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 7
    found = rounded(rows)
    scale = rows.abs().amax(-1, keepdim=True) / 448
    normal = rows.abs() > scale * 2**-6
    assert ((found - rows).abs() <= rows.abs() / 16 * (1 + 1e-6))[normal].all()
    assert ((found - rows).abs() <= scale * 2**-10 * (1 + 1e-6))[~normal].all()
    assert (found - rows).abs().max() > 0.1
    torch.testing.assert_close(found.amax(-1), rows.amax(-1), rtol=1 / 16, atol=0)


def test_what_the_format_holds_stays_and_zero_rows_too() -> None:
    held = torch.tensor([[448.0, 1.125, -0.5, 0.0, 240.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    for scale in (1.0, 2.0**-20, 2.0**12):
        assert torch.equal(rounded(held * scale), held * scale)


def test_a_quantized_child_differs_a_little_and_its_own_is_not_changed(
    checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    config = Parent(checkpoints["llama"], "llama").config
    model, weights = build_model(config, BLOCKS), random_weights(config, BLOCKS)
    load(model, {name: tensor.clone() for name, tensor in weights.items()})
    quantized = fake_quantized(model)
    with torch.no_grad():
        own, found = model(tokens).logits, quantized(tokens).logits
    assert 1e-3 < (own - found).norm() / own.norm() < 0.1
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(quantized.lm_head.weight, model.lm_head.weight)
