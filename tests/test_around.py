"""Scores around a child: the slope and curvature of its own KL, and the parent's case."""

from __future__ import annotations

import pytest
import torch

from puzzle import records
from puzzle.around import MODEL, Child, around, damped
from puzzle.blocks.variant import Block
from puzzle.library import Library
from puzzle.measure import measure
from puzzle.score import score_layer
from puzzle.trace import kl_gradient

CENTER = tuple(map(Block.parse, ("gqa1+ffn256", "noop+ffn512", "gqa2+ffn768")))
SPACE = [[*map(Block.parse, ("gqa4+ffn1024", "gqa2+ffn768", "noop+ffn512", "gqa1+ffn256"))]] * 3


def test_a_score_is_the_change_of_the_childs_kl(library: Library) -> None:
    """To second order: blocks of a random model change little, so it is close."""
    losses = around(Child(library, CENTER), SPACE, samples=64, seed=0, inputs="close")
    children = {
        (layer, block): (*CENTER[:layer], block, *CENTER[layer + 1 :])
        for layer, options in enumerate(SPACE)
        for block in options
    }
    measured = dict(measure(library, [CENTER, *children.values()]))
    before = float(measured[CENTER]["kl"].mean())
    pairs = [
        (losses[layer][block], float(measured[child]["kl"].mean()) - before)
        for (layer, block), child in children.items()
    ]
    predicted, true = map(torch.tensor, zip(*pairs))
    assert min(true) < 0 < max(true)
    assert float((predicted - true).norm() / true.norm()) < 0.5
    assert all(losses[layer][block] == 0 for layer, block in enumerate(CENTER))


def test_scores_are_of_second_order_nearby_and_bounded_far_away() -> None:
    near = [damped(-1e-3 * size, 2e-3 * size**2, 1e-1 * size**2) for size in (1e-1, 1e-2)]
    assert near == pytest.approx([-1e-4 + 2e-5, -1e-5 + 2e-7], rel=1e-4)
    assert damped(-0.3, 1e4, 0.05) == pytest.approx(0, abs=1e-3)
    assert damped(0.1, 1e4, 2e4) < 1.1


def test_the_first_order_is_the_gradient_of_the_kl(library: Library) -> None:
    child, last = Child(library, CENTER), len(CENTER)
    run, head = library.run, library.parent.head()
    parents = run.load_tensors(records.hidden("scoring", last))["h"]
    stream = parents + 0.1 * torch.randn(parents.shape, generator=torch.Generator().manual_seed(0))
    stream.requires_grad_()
    p, q = (head(each).log_softmax(-1) for each in (parents, stream))
    (expected,) = torch.autograd.grad((p.exp() * (p - q)).sum(), stream)
    torch.testing.assert_close(kl_gradient(child, stream, parents), expected, rtol=1e-3, atol=1e-6)


def test_around_the_parent_it_is_the_fisher_score(library: Library) -> None:
    own = library.parent.blocks
    losses = around(Child(library, own), SPACE, samples=64, seed=0, inputs="parent")
    for layer in range(3):
        plain = score_layer(library.run, library, layer, SPACE[layer])
        for block, loss in losses[layer].items():
            assert loss == pytest.approx(plain[str(block)]["fisher"], rel=0.5, abs=1e-7)
    assert library.run.names(f"trace/{MODEL}/*/*")


def test_a_second_look_is_read_from_the_records(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = around(Child(library, CENTER), SPACE, samples=2, seed=0, inputs="again")
    monkeypatch.setattr("puzzle.around.backward", lambda *_: pytest.fail("traced again"))
    assert around(Child(library, CENTER), SPACE, samples=2, seed=0, inputs="again") == first


def test_a_look_at_every_second_sequence_is_one_at_a_text_of_these(library: Library) -> None:
    child = Child(library, CENTER, step=2)
    around(child, SPACE, seed=0, inputs="half")
    leave, parents = (
        library.run.load_tensors(records.hidden("scoring", 0, *model))["h"]
        for model in ([MODEL], [])
    )
    assert 1 <= len(leave) < len(parents)
    torch.testing.assert_close(leave, parents[::2])
