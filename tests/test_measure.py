"""Children carried up together are measured as if each were assembled and run alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from puzzle import measure as module
from puzzle import records
from puzzle.assemble import assemble
from puzzle.blocks.variant import Block
from puzzle.library import Library
from puzzle.measure import METRICS, Values, kl_of, measure


def children(library: Library) -> list[tuple[Block, ...]]:
    """Two that begin alike, one that begins as the parent, one in whose top layer alone a block
    is replaced, the parent, and one child twice."""
    narrow, short = Block.parse("gqa1+ffn256"), Block.parse("noop+ffn512")
    own = library.parent.blocks
    return [
        (narrow, short, own[2]),
        (narrow, short, narrow),
        (own[0], narrow, short),
        (own[0], own[1], Block.parse("noop+noop")),
        own,
        (narrow, short, narrow),
    ]


def alone(library: Library, blocks: tuple[Block, ...]) -> Values:
    """What an assembled child is worth, parent and child run whole on the scoring text."""
    tokens = library.run.load_tensors(records.tokens("scoring"))["tokens"]
    with torch.no_grad():
        p, q = (
            assemble(library, each)(tokens, use_cache=False).logits.log_softmax(-1)
            for each in (library.parent.blocks, blocks)
        )
    losses = F.cross_entropy(q[:, :-1].mT, tokens[:, 1:], reduction="none")
    return {
        "kl": (p.exp() * (p - q)).sum(-1).mean(-1),
        "lm_loss": losses.mean(-1),
        "agreement": (p.argmax(-1) == q.argmax(-1)).float().mean(-1),
    }


@pytest.mark.parametrize("group_bytes", [1, 2**30])
def test_each_child_is_measured_as_if_run_alone(
    library: Library, group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", group_bytes)
    tried = children(library)
    found = dict(measure(library, tried))
    assert len(found) == 5
    for blocks in tried:
        expected = alone(library, blocks)
        assert found[blocks].keys() == METRICS.keys()
        for name, values in found[blocks].items():
            torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-5)
    assert len({float(values["kl"].mean()) for values in found.values()}) == 5


def test_a_user_metric_sees_the_tokens_and_what_parent_and_child_say(library: Library) -> None:
    def chosen(reference: module.Reference, log_q: torch.Tensor) -> torch.Tensor:
        picked = reference.tokens[:, None]
        return log_q.gather(-1, picked).exp() - reference.log_p.gather(-1, picked).exp()

    own, child = library.parent.blocks, children(library)[0]
    found = dict(measure(library, [own, child], {"mine": chosen}))
    assert found[own]["mine"].abs().max() < 1e-7
    assert found[child]["mine"].abs().max() > 1e-7


def test_a_child_starts_at_the_first_layer_where_it_differs(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers below it are not even loaded, and a half shared by children is loaded once."""
    loaded: list[tuple[int, str]] = []
    weights = Library.weights

    def spy(self: Library, layer: int, block: Block) -> object:
        loaded.append((layer, str(block)))
        return weights(self, layer, block)

    monkeypatch.setattr(Library, "weights", spy)
    own, other = library.parent.blocks, Block.parse("noop+ffn512")
    dict(measure(library, [(own[0], other, own[2]), (own[0], other, other)]))
    assert loaded == [(1, str(other)), (2, str(own[2])), (2, str(other))]


def test_a_whole_model_measures_as_its_blocks_do(library: Library) -> None:
    child = children(library)[0]
    [(_, values)] = measure(library, [child])
    expected = float(values["kl"].mean())
    assert kl_of(library, assemble(library, child)) == pytest.approx(expected, rel=1e-3, abs=1e-6)
