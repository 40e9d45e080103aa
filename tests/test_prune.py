"""From a parent to a pruned checkpoint: what it keeps to, resuming, the search that goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import SETTINGS

from puzzle import open_parent, prune, search
from puzzle.baselines.minitron.cut import Cut
from puzzle.baselines.minitron.minitron import CONFIG
from puzzle.baselines.minitron.outcome import Pruned
from puzzle.baselines.minitron.pruned import kept_layers, taught_by, write_pruned
from puzzle.baselines.minitron.workshop import partway
from puzzle.cli import main
from puzzle.config import Heal
from puzzle.corpus import splits
from puzzle.errors import PuzzleError
from puzzle.modules import Weights
from puzzle.parent import Parent

QUICK = [*SETTINGS, "prune.tokens=256", "prune.light=256", "prune.candidates=2"]


@pytest.fixture(scope="module")
def pruned(tiny_parent: str, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """Half of the tiny parent's parameters."""
    out = tmp_path_factory.mktemp("runs") / "half"
    return prune(tiny_parent, target="0.6x", out=out, settings=QUICK)


def test_the_target_is_kept_by_the_best_of_the_finalists(pruned: Pruned, tiny_parent: str) -> None:
    params = open_parent(str(pruned.checkpoint)).shape
    whole = open_parent(tiny_parent).shape
    size = params.model_params(params.blocks)
    assert size / whole.model_params(whole.blocks) == pytest.approx(0.6, abs=0.03)
    table = pruned.table
    assert table.loc["parameters", "pruned, healed"] == size
    assert table.loc["KL to the parent", "parent"] == pytest.approx(0, abs=1e-6)
    finalists = pruned.finalists
    assert len(finalists) == 2
    assert list(finalists["healed_kl"]) == sorted(finalists["healed_kl"])
    assert finalists["cut"][0] == str(pruned.cut)


def test_the_checkpoint_is_one_of_transformers_own(pruned: Pruned, tiny_parent: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(pruned.checkpoint)
    assert type(model) is transformers.LlamaForCausalLM
    fields = json.loads((pruned.checkpoint / "config.json").read_text())
    assert fields["rope_theta"] == model.config.rope_parameters["rope_theta"]
    assert fields["torch_dtype"] == fields["dtype"]
    assert model.dtype == torch.float32  # as the parent's
    assert Cut.whole(open_parent(str(pruned.checkpoint)).shape).layers == tuple(
        range(len(pruned.cut.layers))
    )
    shipped = {path.name for path in pruned.checkpoint.iterdir()}
    assert shipped >= {"config.json", "model.safetensors", "tokenizer.json"}
    config = json.loads((pruned.checkpoint / "config.json").read_text())
    assert config["head_dim"] == 16


def test_the_same_command_again_does_nothing_and_a_lost_record_is_made_again(
    pruned: Pruned, tiny_parent: str
) -> None:
    out = pruned.checkpoint.parent
    before = {path: path.stat().st_mtime_ns for path in records(out)}
    again = prune(tiny_parent, target="0.6x", out=out, settings=QUICK)
    assert again.formatted().equals(pruned.formatted())
    assert {path: path.stat().st_mtime_ns for path in records(out)} == before
    (out / "evaluation.pruned.healed.json").unlink()
    (out / "hf" / "puzzle.json").unlink()
    third = prune(tiny_parent, target="0.6x", out=out, settings=QUICK)
    assert third.table.equals(pruned.table)
    unchanged = {path: path.stat().st_mtime_ns for path in records(out) if path in before}
    redone = {path.name for path in before if unchanged[path] != before[path]}
    exported = {path.name for path in before if path.parent == out / "hf"}
    assert redone == {"evaluation.pruned.healed.json", *exported}


def records(out: Path) -> list[Path]:
    """The records of a run."""
    return [path for path in out.rglob("*") if path.suffix in (".json", ".safetensors")]


def test_the_search_goes_on_from_a_pruned_parent_taught_by_the_whole(
    pruned: Pruned, tiny_parent: str, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"teacher={tiny_parent}", "heal.cosine=0"]
    result = search(str(pruned.checkpoint), out=tmp_path / "run", settings=settings)
    whole = open_parent(str(pruned.checkpoint)).shape
    assert result.served("parent")["params"] == whole.model_params(whole.blocks)
    assert result.served("child")["tokens_per_s"] > result.served("parent")["tokens_per_s"]
    assert (result.checkpoint / "model.safetensors").exists()


def test_a_student_knows_which_layers_of_its_teacher_it_holds(
    tiny_parent: str, tmp_path: Path
) -> None:
    """Cut by depth, then again: each of the layers left stands for one of the whole."""
    whole, places = open_parent(tiny_parent), [tmp_path / "once", tmp_path / "twice"]
    for folder, layers in zip(places, ((0, 2), (1,))):
        parent = whole if folder == places[0] else open_parent(str(places[0]))
        model = tiny_weights(parent)
        cut = replace(Cut.whole(parent.shape), layers=layers)
        kept = {
            name.replace(f"layers.{old}.", f"layers.{new}.", 1): tensor
            for new, old in enumerate(layers)
            for name, tensor in model.items()
            if f"layers.{old}." in name or "layers." not in name
        }
        write_pruned(folder, parent, cut, kept)
    once, twice = places
    assert kept_layers(once, tiny_parent) == (0, 2)
    assert kept_layers(twice, tiny_parent) == (2,)
    assert kept_layers(twice, str(once)) == (1,)
    assert kept_layers(once, "another") == kept_layers(Path(tiny_parent), tiny_parent) == ()
    options = Heal()
    assert taught_by(options, twice, tiny_parent).layers == (2,)
    assert taught_by(options, twice, None) == options
    named = Heal(layers=(0,))
    assert taught_by(named, twice, tiny_parent) == named


def tiny_weights(parent: Parent) -> Weights:
    """Every tensor of a parent by its name in the checkpoint."""
    return load_file(parent.folder / "model.safetensors")


@pytest.mark.parametrize(
    ("axis", "settings"),
    [
        ("depth", ["prune.depth=influence"]),
        ("depth", ["prune.depth=accuracy", "heal.correct_tokens=256"]),
        ("width", ["prune.rounds=2", "prune.merge=1", "prune.over_texts=var"]),
    ],
)
def test_every_way_comes_to_a_checkpoint(axis: str, settings: list[str], tmp_path: Path) -> None:
    asked = [*QUICK, "heal.tokens=1024", f"prune.axes=[{axis}]", *settings]
    found = prune("embedded", target="0.77x", out=tmp_path / "run", settings=asked)
    whole = Cut.whole(open_parent("embedded").shape)
    assert set(found.finalists["kind"]) == {axis}
    assert (found.cut.layers == whole.layers) == (axis == "width")
    kls = found.table.loc["KL to the parent"]
    assert kls["pruned"] > kls["pruned, healed"] > kls["parent"] == pytest.approx(0, abs=1e-6)
    assert (found.finalists["healed_kl"] < found.finalists["kl"]).all()
    shape = open_parent(str(found.checkpoint)).shape
    assert Cut.whole(shape) == Cut(
        *(found.cut.hidden_size, found.cut.heads, found.cut.kv_heads),
        found.cut.intermediate_size,
        tuple(range(len(found.cut.layers))),
    )
    corrected = (tmp_path / "run/teacher.safetensors").exists()
    assert corrected == any("correct_tokens" in setting for setting in settings)


def test_layers_that_stay_are_those_whose_loss_costs_least_perplexity(tmp_path: Path) -> None:
    """Against transformers' own model with the layers deleted from it."""
    found = prune(
        "embedded",
        target="0.88x",
        out=tmp_path / "run",
        settings=[*QUICK, "prune.axes=[depth]", "prune.light=0", "heal.tokens=0"],
    )
    parent = open_parent("embedded")
    tokens = splits("embedded", parent.tokenizer, length=32, tokens={"scoring": 256}, seed=0)[
        "scoring"
    ]
    losses = {}
    for gone in range(1, 7):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            parent.folder, dtype=torch.float32
        )
        del model.model.layers[gone]
        model.config.num_hidden_layers = 7
        with torch.no_grad():
            losses[gone] = float(model(tokens, labels=tokens, use_cache=False).loss)
    best = min(losses, key=lambda gone: losses[gone])
    assert found.cut.layers == tuple(layer for layer in range(8) if layer != best)


def test_rounds_go_down_in_even_steps() -> None:
    whole = Cut(128, 4, 4, 1024, (0, 1, 2, 3))
    cut = Cut(32, 4, 4, 256, (0, 1, 3))
    half = partway(whole, cut, 2)
    assert (half.hidden_size, half.intermediate_size, half.layers) == (64, 512, (0, 1, 3))
    assert partway(whole, cut, 1) == cut


def test_what_is_no_checkpoint_of_ours_is_not_replaced(
    pruned: Pruned, tiny_parent: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / "hf").mkdir(parents=True)
    (out / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(PuzzleError, match="is no checkpoint that Puzzle wrote"):
        prune(tiny_parent, target="0.6x", out=out, settings=QUICK)


def puzzle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any
) -> tuple[int, str, str]:
    """Run `puzzle ...`; returns exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["puzzle", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0), *capsys.readouterr()


def test_the_command_prints_the_table_and_where_the_checkpoint_is(
    pruned: Pruned, tiny_parent: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, words = pruned.checkpoint.parent, [w for setting in QUICK for w in ("--set", setting)]
    code, printed, _ = puzzle(
        monkeypatch,
        capsys,
        *("prune", tiny_parent, "--method", "minitron", "--target", "0.6x"),
        *("--axes", "width,depth", "--of", "parameters", "--out", out, *words),
    )
    assert code == 0
    for text in ("parameters", "KL to the parent", "pruned, healed", str(pruned.checkpoint)):
        assert text in printed
    assert (out / CONFIG).exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "magnitude"], "--method magnitude is unknown"),
        (["--target", "3 GiB"], "is no amount of parameters"),
        (["--target", "much"], "expected a multiple of the parent's like 0.75x"),
        (["--of", "latency"], "prune.of=latency"),
        (["--axes", "length"], "prune.axes=[length]"),
        (["--set", "costs={table}"], "mine.csv holds times of one hidden size"),
        (["--set", "costs=roofine"], "'roofine'"),
        (["--set", "sequence_length=1024"], "sequence_length is 1024, the parent has 512"),
        (["--set", "teacher=embedded"], "prune learns from the model that it prunes"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (table := tmp_path / "mine.csv").touch()
    words = [word.replace("{table}", str(table)) for word in words]
    code, _, err = puzzle(monkeypatch, capsys, "prune", *words, "--out", tmp_path / "run")
    assert code == 2
    assert sentence in err
    assert err.startswith("puzzle: ")
    assert err.count("\n") == 1
