"""Which streams are compared with which, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny import SIZES

from puzzle.blocks.variant import Block
from puzzle.errors import PuzzleError
from puzzle.losses import Factors
from puzzle.modules import child_config
from puzzle.objective import Objective, Trunk, check_head, matched, run_trunk
from puzzle.parent import Parent


def config(layers: int, hidden: int = 64) -> SimpleNamespace:
    return SimpleNamespace(num_hidden_layers=layers, hidden_size=hidden)


def model(**changes: int) -> transformers.LlamaForCausalLM:
    """A random Llama of these sizes."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **changes})).eval()


def test_as_many_layers_are_compared_each_with_each() -> None:
    assert matched(config(3), config(3)) == [(1, 1), (2, 2), (3, 3)]


def test_fewer_layers_hand_on_what_the_next_one_kept_was_handed() -> None:
    assert matched(config(3), config(6), [0, 1, 5]) == [(1, 1), (2, 5), (3, 6)]
    assert matched(config(2), config(6)) == [(1, 3), (2, 6)]  # evenly


def test_a_depth_pruned_copy_loses_nothing_up_to_the_cut() -> None:
    """Layers 1 and 2 of 5 are gone: the stream that leaves layer 0 is not what entered layer 3."""
    teacher = model(num_hidden_layers=5)
    student = model(num_hidden_layers=3)
    weights = teacher.state_dict()
    for own, theirs in enumerate((0, 3, 4)):
        part = f"model.layers.{theirs}."
        layer = {n.removeprefix(part): w for n, w in weights.items() if n.startswith(part)}
        student.model.layers[own].load_state_dict(layer)
    outside = {n: w for n, w in weights.items() if "layers" not in n}
    student.load_state_dict(outside, strict=False)
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        streams, _ = run_trunk(student, tokens, streams=True)
        wanted, _ = run_trunk(teacher, tokens, streams=True)
    own, other = matched(student.config, teacher.config, [0, 3, 4])[0]
    assert other == 3
    torch.testing.assert_close(streams[own], wanted[1])  # the same layer made it
    assert not torch.allclose(streams[own], wanted[other])  # so there is something to learn


@pytest.mark.parametrize("layers", [[0, 1], [0, 2, 1], [0, 1, 6], [0, 1, 1]])
def test_layers_that_are_not_the_teachers_are_refused(layers: list[int]) -> None:
    with pytest.raises(PuzzleError, match=r"for a student of 3 layers; name 3 .* 0 to 5, in order"):
        matched(config(3), config(6), layers)


def test_another_hidden_size_is_healed_by_kl_alone() -> None:
    teacher, student = model(), model(hidden_size=32)
    with pytest.warns(UserWarning, match="hidden size is 32, the teacher's 64: .* by KL alone"):
        objective = Objective(student, Trunk(teacher), Factors(cosine=1, kl=1))
    tokens = torch.arange(20).view(2, 10)
    loss, parts = objective(tokens, torch.full((2,), 1 / 20))
    assert set(parts) == {"kl", "lm"}
    assert float(loss.detach()) == float(parts["kl"])
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())


def test_another_vocabulary_and_no_teacher_are_refused() -> None:
    with pytest.raises(PuzzleError, match="the student knows 97 tokens, the teacher 50"):
        Objective(model(), Trunk(model(vocab_size=50)), Factors())
    with pytest.raises(PuzzleError, match="need a teacher"):
        Objective(model(), None, Factors())


def test_the_teacher_is_no_part_of_the_objective() -> None:
    student = model()
    objective = Objective(student, Trunk(model()), Factors())
    assert len(list(objective.parameters())) == len(list(student.parameters()))


@pytest.mark.parametrize(
    ("factors", "width"), [(Factors(cosine=1, kl=0), 32), (Factors(cosine=0, kl=0), 64)]
)
@pytest.mark.filterwarnings("ignore:the student's hidden size")
def test_nothing_to_learn_from_is_refused(factors: Factors, width: int) -> None:
    with pytest.raises(PuzzleError, match="nothing is left to learn from"):
        Objective(model(hidden_size=width), Trunk(model()), factors)


def test_what_an_empty_layer_hands_on_is_compared_behind_it_alone(
    checkpoints: dict[str, Path],
) -> None:
    config = Parent(checkpoints["llama"], "llama").config
    text = "gqa2+ffn96 noop+noop noop+noop gqa1+ffn32 noop+noop"
    child = child_config(config, list(map(Block.parse, text.split())))
    child.num_hidden_layers = 5
    assert matched(child, SimpleNamespace(num_hidden_layers=5, hidden_size=64)) == [
        (3, 3), (5, 5)
    ]  # fmt: skip


def test_a_student_deeper_than_its_teacher_is_told_what_helps() -> None:
    shallow, deep = (SimpleNamespace(num_hidden_layers=n, hidden_size=64) for n in (2, 4))
    with pytest.raises(PuzzleError, match=r"has 4 layers, the teacher 2: .* set heal\.cosine=0"):
        matched(deep, shallow)


def test_a_model_whose_logits_are_not_its_heads_alone_is_refused() -> None:
    check_head("llama", transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)))
    config = transformers.GraniteConfig(**SIZES, logits_scaling=8.0)
    gpt = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    for other in (transformers.GraniteForCausalLM(config), transformers.GPT2LMHeadModel(gpt)):
        with pytest.raises(PuzzleError, match="more than a norm and a head, as models of the fam"):
            check_head("other", other)
