"""The streamed sweeps equal the model run whole, forwards and backwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import SIZES, tiny_model

from puzzle import records
from puzzle.parent import Parent
from puzzle.run import Run
from puzzle.trace import draw_labels, head_gradients, trace

SAMPLES = 3


@pytest.fixture
def traced(
    family: str, checkpoints: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> tuple[Run, Parent]:
    parent, run = Parent(checkpoints[family], family), Run(tmp_path / "run")
    trace(run, parent, {"calibration": tokens, "scoring": tokens[:4]}, samples=SAMPLES, seed=5)
    return run, parent


def test_streams_equal_the_hidden_states_of_the_model_run_whole(
    traced: tuple[Run, Parent], family: str, tokens: torch.Tensor
) -> None:
    run, parent = traced
    with torch.no_grad():
        whole = tiny_model(family).model(tokens, output_hidden_states=True).hidden_states
    for layer in range(parent.shape.layers):  # the last one is normed by transformers
        streamed = run.load_tensors(records.hidden("calibration", layer))["h"]
        assert torch.equal(streamed, whole[layer])


def test_streamed_gradients_equal_autograd_through_the_whole_model(
    traced: tuple[Run, Parent], family: str, tokens: torch.Tensor
) -> None:
    run, parent = traced
    model, last = tiny_model(family), parent.shape.layers
    hidden = run.load_tensors(records.hidden("scoring", last))["h"]
    probability = parent.head()(hidden).softmax(-1).flatten(0, 1)
    generator = torch.Generator().manual_seed(5)
    draws = draw_labels(probability, SAMPLES, generator)

    streams = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: streams.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    log_probability = model(tokens[:4]).logits.log_softmax(-1)
    for k in range(SAMPLES):
        labels = draws[:, k].reshape(4, -1, 1)
        total = log_probability.gather(-1, labels).sum()
        expected = torch.autograd.grad(total, streams, retain_graph=True)
        for layer in range(1, last):
            streamed = run.load_tensors(records.gradient(layer))["g"][k]
            torch.testing.assert_close(streamed, expected[layer], rtol=1e-4, atol=1e-5)


def test_a_second_trace_writes_nothing_and_a_changed_text_everything(
    checkpoints: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    parent, run = Parent(checkpoints["llama"], "llama"), Run(tmp_path / "run")
    splits = {"calibration": tokens, "scoring": tokens[:4]}

    def stamps() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in sorted(run.folder.rglob("*.safetensors"))}

    first = trace(run, parent, splits, samples=1, seed=0)
    before = stamps()
    assert trace(run, parent, splits, samples=1, seed=0) == first
    assert stamps() == before
    changed = {name: (part + 1) % SIZES["vocab_size"] for name, part in splits.items()}
    assert trace(run, parent, changed, samples=1, seed=0) != first
    assert all(after != before[path] for path, after in stamps().items())


def test_label_draws_follow_the_parents_distribution(
    checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    """E[grad log p(y)] = 0 under y ~ p: the mean over many draws goes to zero."""
    parent = Parent(checkpoints["llama"], "llama")
    hidden = parent.embed(tokens[:1, :2])
    gradient = head_gradients(parent, hidden, samples=4000, seed=0)
    assert gradient.mean(dim=0).norm() < 0.05 * gradient.norm(dim=-1).mean()


def test_labels_are_spread_evenly_and_each_follows_the_distribution() -> None:
    """Every label comes as often as K p says, give or take one; over many positions, as p says."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(50, generator=generator).pow(3)
    p /= p.sum()
    draws = draw_labels(p.expand(3000, -1), 16, generator)
    counts = torch.nn.functional.one_hot(draws, 50).sum(dim=1)
    assert ((counts - 16 * p).abs() <= 1 + 1e-5).all()
    for k in (0, 15):
        share = torch.nn.functional.one_hot(draws[:, k], 50).float().mean(dim=0)
        torch.testing.assert_close(share, p, rtol=0, atol=0.02)


def test_labels_of_different_positions_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = draw_labels(torch.full((20_000, 2), 0.5), 2, generator).float() - 0.5
    first, second = draws[::2, 0], draws[1::2, 0]
    assert abs(float((first * second).mean())) < 0.01
