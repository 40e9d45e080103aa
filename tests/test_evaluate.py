"""Every figure of an evaluation against the same figure computed in another way."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from puzzle.assemble import assemble, from_weights, gather
from puzzle.corpus import accuracy_items, splits
from puzzle.evaluate import Evaluation, Reading, continuation_log_likelihoods, evaluate
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.generation import continuations
from puzzle.library import Library
from puzzle.parent import Parent, open_parent
from puzzle.run import Run

ITEMS = accuracy_items()[:40]
PAIRS = [
    ("noun, a large body of water:", " ocean"),
    ("x", " and a much longer continuation, of many tokens; 1 2 3"),
    ("a long beginning that is followed by little " * 3, " a"),
]


@pytest.fixture(scope="module")
def parent() -> Parent:
    return open_parent("embedded")


@pytest.fixture(scope="module")
def library(parent: Parent, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(Run(tmp_path_factory.mktemp("evaluate") / "run"), parent)


@pytest.fixture(scope="module")
def teacher(library: Library) -> PuzzleForCausalLM:
    return assemble(library, library.parent.blocks)


@pytest.fixture(scope="module")
def child(library: Library) -> PuzzleForCausalLM:
    """The parent with noise on its weights."""
    weights = gather(library, library.parent.blocks)
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: weight + 0.2 * weight.std() * torch.randn(weight.shape, generator=generator)
        for name, weight in weights.items()
    }
    return from_weights(library, library.parent.blocks, noisy)


@pytest.fixture(scope="module")
def reference(parent: Parent) -> torch.nn.Module:
    """The parent as transformers itself loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(parent.folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokens(parent: Parent) -> torch.Tensor:
    """Real text [20, 128]: more than one batch, the last one not full."""
    cut = splits("embedded", parent.tokenizer, length=128, tokens={"evaluation": 2560}, seed=0)
    return cut["evaluation"]


@pytest.fixture(scope="module")
def worth(teacher: PuzzleForCausalLM, tokens: torch.Tensor, parent: Parent) -> Evaluation:
    """What the parent is worth, measured against itself."""
    return evaluate(teacher, Reading(teacher, tokens), tokenizer=parent.tokenizer, items=ITEMS)


def test_the_parent_is_no_distance_from_itself(worth: Evaluation, tokens: torch.Tensor) -> None:
    assert worth.kl == 0
    assert worth.kl_std_error == 0
    assert worth.agreement == 1
    assert worth.tokens == tokens.numel()
    assert worth.items == len(ITEMS)


def test_perplexity_is_that_of_transformers_own_loss(
    worth: Evaluation, reference: Any, tokens: torch.Tensor
) -> None:
    with torch.no_grad():
        loss = reference(tokens, labels=tokens).loss
    assert worth.perplexity == pytest.approx(float(loss.exp()), rel=1e-5)
    assert 5 < worth.perplexity < 60  # a trained model on text it knows the kind of


def test_distance_and_agreement_of_a_child_by_the_formula(
    teacher: PuzzleForCausalLM, child: PuzzleForCausalLM, tokens: torch.Tensor, parent: Parent
) -> None:
    worth = evaluate(child, Reading(teacher, tokens), tokenizer=parent.tokenizer, items=ITEMS[:2])
    with torch.no_grad():
        p, q = (model(tokens).logits.double().softmax(-1) for model in (teacher, child))
    kl = (p * (p / q).log()).sum(-1)
    assert worth.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert worth.kl > 0.05
    assert worth.kl_std_error == pytest.approx(float(kl.mean(1).std() / 20**0.5), rel=1e-3)
    agreement = (p.argmax(-1) == q.argmax(-1)).double().mean()
    assert worth.agreement == pytest.approx(float(agreement), abs=1e-6)
    assert 0.2 < worth.agreement < 0.99


@torch.no_grad()
def direct(model: Any, tokenizer: Any, prefix: str, continuation: str) -> float:
    """Sum of log p of the continuation's tokens, one text at a time, token by token."""
    start, rest = (tokenizer.encode(t, add_special_tokens=False) for t in (prefix, continuation))
    total = 0.0
    for place, token in enumerate(rest):
        seen = torch.tensor([start + rest[:place]])
        total += float(model(seen).logits[0, -1].double().log_softmax(-1)[token])
    return total


def test_continuations_padded_together_equal_each_alone_and_the_direct_computation(
    teacher: PuzzleForCausalLM, reference: Any, parent: Parent
) -> None:
    tokenizer = parent.tokenizer
    with torch.no_grad():
        together = continuation_log_likelihoods(teacher, tokenizer, PAIRS)
        alone = torch.cat([continuation_log_likelihoods(teacher, tokenizer, [p]) for p in PAIRS])
    expected = torch.tensor([direct(reference, tokenizer, *pair) for pair in PAIRS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
    assert (together < 0).all()


def test_accuracy_counts_the_likeliest_choice(
    teacher: PuzzleForCausalLM,
    worth: Evaluation,
    reference: Any,
    tokens: torch.Tensor,
    parent: Parent,
) -> None:
    right = 0
    for item in ITEMS:
        prefix = f"{item.kind}, {item.definition}:"
        scores = [
            direct(reference, parent.tokenizer, prefix, f" {choice}") for choice in item.choices
        ]
        right += scores.index(max(scores)) == item.answer
    assert worth.accuracy == pytest.approx(right / len(ITEMS))
    assert worth.accuracy > 0.25  # of chance
    spread = (worth.accuracy * (1 - worth.accuracy) / (len(ITEMS) - 1)) ** 0.5
    assert worth.accuracy_std_error == pytest.approx(spread, rel=1e-4)
    wrong = [dataclasses.replace(item, answer=(item.answer + 1) % 4) for item in ITEMS]
    other = evaluate(teacher, Reading(teacher, tokens[:2]), tokenizer=parent.tokenizer, items=wrong)
    assert other.accuracy <= 1 - worth.accuracy


def test_the_parent_reads_a_text_once_for_all_models(
    teacher: PuzzleForCausalLM, child: PuzzleForCausalLM, tokens: torch.Tensor, parent: Parent
) -> None:
    read, passes = Reading(teacher, tokens), 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    hook = teacher.model.register_forward_hook(count)
    worths = [
        evaluate(model, read, tokenizer=parent.tokenizer, items=()) for model in (child, child)
    ]
    hook.remove()
    assert passes == len(read.batches) > 1
    assert worths[0].kl == worths[1].kl > 0.05


def test_one_sequence_has_no_spread(
    child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tokens: torch.Tensor, parent: Parent
) -> None:
    """A user who asks for few evaluation tokens gets an unknown error bar, and no warning."""
    worth = evaluate(
        child, Reading(teacher, tokens[:1]), tokenizer=parent.tokenizer, items=ITEMS[:2]
    )
    assert worth.kl > 0
    assert math.isnan(worth.kl_std_error)


def test_the_parent_of_a_family_is_assembled_bit_for_bit(
    family: str, checkpoints: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    parent = Parent(checkpoints[family], family)
    model = assemble(Library(Run(tmp_path / "run"), parent), parent.blocks)
    whole = transformers.AutoModelForCausalLM.from_pretrained(checkpoints[family])
    few = tokens[:2, :40] % 97
    with torch.no_grad():
        assert torch.equal(model(few).logits, whole(few).logits)


def test_continuations_are_the_likeliest_tokens_whatever_the_checkpoint_prefers(
    reference: Any, parent: Parent, tokens: torch.Tensor
) -> None:
    def said() -> list[str]:
        return continuations(reference, parent.tokenizer, tokens[:, :8], new_tokens=12)

    plain = said()
    reference.generation_config.repetition_penalty = 5.0
    assert said() == plain
    found = tokens[:, :8]
    for _ in range(12):
        with torch.no_grad():
            nearest = reference(found).logits[:, -1:].argmax(-1)
        found = torch.cat([found, nearest], dim=1)
    written = parent.tokenizer.batch_decode(found[:, 8:], skip_special_tokens=True)
    assert all(long.startswith(short) for long, short in zip(written, plain))
