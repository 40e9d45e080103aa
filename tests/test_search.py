"""The whole road on a tiny parent: what a user gets, kills between and inside stages, budgets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from tiny import SETTINGS

import puzzle
from puzzle import Architecture, InfeasibleError, PuzzleError, open_result, records, search, solve
from puzzle.assemble import from_weights
from puzzle.corpus import splits
from puzzle.evaluate import Reading
from puzzle.evaluate import evaluate as evaluate_text
from puzzle.exact import exact
from puzzle.export.again import export
from puzzle.library import Library
from puzzle.parent import open_parent
from puzzle.result import Result
from puzzle.run import Run
from puzzle.swap import Swap

HEALED = "children/h100-1gpu/healed.safetensors"


def test_a_search_ends_with_a_child_a_checkpoint_and_a_report(result: Result) -> None:
    assert result.models["child"]["proof"]["status"] == "optimal"
    assert result.models["child"]["shares"]["throughput"] <= 1
    assert list(result.table.columns) == ["parent", "uniform child", "child", "child, healed"]
    assert result.value("KL to the parent", "parent") == pytest.approx(0, abs=1e-6)
    assert result.value("throughput", "child") >= 1.8 * result.value("throughput", "parent")
    assert Architecture.parse(str(result.architecture)) == result.architecture
    page = result.report.read_text()
    assert page.count("<svg") == 5
    assert "http-equiv" not in page
    assert "src=" not in page
    assert str(result.architecture.blocks[1]) in page


def test_its_tables_are_frames_and_its_plots_figures(result: Result) -> None:
    layers = len(result.architecture.blocks)
    assert set(result.scores["layer"]) == set(range(layers))
    assert result.scores["chosen"].sum() == layers
    own = result.scores[result.scores["block"] == "gqa4+ffn1024"]
    assert (own["loss"] == 0).all()
    assert set(result.library.columns) >= {"layer", "half", "sliced", "refit", "trained"}
    assert set(result.costs["batch"]) == {2**power for power in range(11)}
    assert len(result.healing) == 2
    assert set(result.timings["stage"]) >= {"trace", "library", "scores", "choose", "heal"}
    for plot in ("architecture", "scores", "budget", "quality", "throughput"):
        assert getattr(result, f"plot_{plot}")().axes


def test_the_checkpoint_holds_the_healed_child(result: Result) -> None:
    puzzle.register()
    served = transformers.AutoModelForCausalLM.from_pretrained(result.checkpoint)
    healed = load_file(result.run.folder / HEALED)
    assert served.num_parameters() == result.value("parameters", "child")
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(served.state_dict()[name].float(), healed[name])


def test_the_card_says_what_was_asked_and_how_it_came_to_be(result: Result) -> None:
    card = (result.checkpoint / "README.md").read_text()
    head, _, text = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["tags"] == ["puzzle", "nemotron-nas"]
    assert "base_model" not in head  # which is a folder here, that no hub knows
    assert result.reason() in text
    assert "tokens by cosine + KL, taught by the parent" in text
    assert "With transformers 5.17 or later:" in text
    budget, provenance = (
        text.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("yaml", "json")
    )
    assert yaml.safe_load(budget) == result.solution["budget"]
    digests = [each["digest"] for each in json.loads(provenance)["texts"].values()]
    assert len(set(digests)) == 3


def test_the_three_texts_are_disjoint_and_written_down(result: Result) -> None:
    texts = json.loads((result.run.folder / "provenance.json").read_text())["texts"]
    assert set(texts) == {"calibration", "scoring", "evaluation"}
    assert len({text["digest"] for text in texts.values()}) == 3


def test_running_again_writes_no_record(result: Result, tiny_parent: str) -> None:
    def stamps() -> dict[str, int]:
        kept = (".safetensors", ".json")
        paths = [p for p in result.run.folder.rglob("*") if p.suffix in kept]
        written_always = ("provenance.json",)
        return {
            str(p): p.stat().st_mtime_ns
            for p in paths
            if p.relative_to(result.run.folder).parts[0] not in written_always
        }

    before = stamps()
    assert len(before) >= 40
    search(tiny_parent, out=result.run.folder, settings=SETTINGS)
    assert stamps() == before


def test_a_new_budget_on_an_old_run_chooses_again_and_trains_nothing(
    result: Result, tmp_path: Path
) -> None:
    looser = tmp_path / "looser.yaml"
    looser.write_text(
        "hardware: h100-sxm\n"
        "workload: {prompt_tokens: 100, new_tokens: 28, batches: [16, 64]}\n"
        "targets: {throughput: 1.2x}\n"
    )
    folder = shutil.copytree(result.run.folder, tmp_path / "run")  # other tests share that run
    library = [p.stat().st_mtime_ns for p in sorted((folder / "library").iterdir())]
    begin = time.monotonic()
    again = solve(folder, str(looser))
    assert time.monotonic() - begin < 20
    assert again.name == "looser"
    assert again.predicted_kl < result.predicted_kl
    assert library == [p.stat().st_mtime_ns for p in sorted((folder / "library").iterdir())]
    assert open_result(folder, "h100-1gpu").architecture == result.architecture
    assert open_result(folder).name == "looser"


def test_a_run_of_another_parent_is_left_alone(
    result: Result, tiny_parent: str, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_parent, tmp_path / "other")
    with pytest.raises(PuzzleError, match=r"holds a search of .*tiny, not of .*other; give anoth"):
        search(str(moved), out=result.run.folder, settings=SETTINGS)


def test_scores_of_an_earlier_library_choose_nothing(result: Result, tmp_path: Path) -> None:
    """As when a search with other settings was stopped between its library and its scores."""
    folder = shutil.copytree(result.run.folder, tmp_path / "run")
    run = Run(folder)
    [piece, *_] = run.names("library/L01.*")
    made = run.load_tensors(piece)
    run.save_tensors(piece, made, "of another library", run.info(piece))
    with pytest.raises(PuzzleError, match=r"the scores of layer 1 in .* are of an earlier library"):
        solve(folder, "h100-1gpu")


def test_a_child_that_is_only_chosen_shows_no_quality_of_the_one_before(
    result: Result, tmp_path: Path
) -> None:
    """The budget changes under its name; chosen back, the first child has its numbers again."""
    folder, budget = tmp_path / "run", tmp_path / "h100-1gpu.yaml"
    shutil.copytree(result.run.folder, folder)
    text = "hardware: h100-sxm\nworkload: {prompt_tokens: 200, new_tokens: 56, batches: [64]}\n"
    budget.write_text(text + "targets: {throughput: 1.2x}\n")
    again = solve(folder, str(budget))
    assert again.architecture != result.architecture
    assert again.value("KL to the parent", "parent") == pytest.approx(0, abs=1e-6)
    assert again.table[["child", "child, healed"]].loc["KL to the parent"].isna().all()
    assert "evaluation text" not in again.reason()
    assert "checkpoint" not in again.summary()
    back = solve(folder, "h100-1gpu")
    assert back.formatted().equals(result.formatted())
    assert back.summary() == result.summary().replace(str(result.run.folder), str(folder))


def test_texts_and_types_that_do_not_go_together_are_refused(
    tiny_parent: str, tmp_path: Path
) -> None:
    for settings, sentence in (
        (["sequence_length=512"], "sequence_length is 512, the parent has 256 positions"),
        (["dtype=bfloat16", "mend.dtype=float32"], "mend.dtype is float32 where dtype"),
        (["dtype=bfloat16", "distill.dtype=float32"], "distill.dtype is float32 where dtype"),
    ):
        with pytest.raises(PuzzleError, match=sentence):
            search(tiny_parent, out=tmp_path / "run", settings=settings)


def test_killed_at_any_record_and_run_again_it_makes_the_same_child(
    result: Result, tiny_parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is interrupted at every ninth record, between stages and inside them."""
    replace, written = os.replace, [0]

    def dying(source: str, target: str) -> None:
        written[0] += 1
        if written[0] % 9 == 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    kills = 0
    while True:
        try:
            search(tiny_parent, out=tmp_path / "killed", settings=SETTINGS)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 4
    whole, resumed = load_file(result.run.folder / HEALED), load_file(tmp_path / "killed" / HEALED)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_process_killed_for_real_leaves_a_run_that_goes_on(
    result: Result, tiny_parent: str, tmp_path: Path
) -> None:
    out = tmp_path / "sigkill"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "puzzle", "search", "--model", tiny_parent, "--out", str(out)]
    process = subprocess.Popen([*command, *settings], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("library/L01.*"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / HEALED).exists()
    search(tiny_parent, out=out, settings=SETTINGS)
    whole, resumed = load_file(result.run.folder / HEALED), load_file(out / HEALED)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_infeasible_budget_says_so_before_anything_is_trained(
    tiny_parent: str, tmp_path: Path
) -> None:
    budget = tmp_path / "hopeless.yaml"
    budget.write_text(
        "hardware: h100-sxm\n"
        "workload: {prompt_tokens: 100, new_tokens: 28, batches: [16]}\n"
        "targets: {throughput: 90x}\n"
    )
    with pytest.raises(InfeasibleError, match="cheapest possible child has"):
        search(tiny_parent, budget=str(budget), out=tmp_path / "run", settings=SETTINGS)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_another_source_of_costs_prices_the_same_blocks(
    result: Result, tiny_parent: str, tmp_path: Path
) -> None:
    with pytest.raises(PuzzleError, match="take roofline, public, measured, or a table's path"):
        search(tiny_parent, out=tmp_path / "run", settings=[*SETTINGS, "costs=nowhere.csv"])
    shutil.copytree(result.run.folder, tmp_path / "copy")
    closer = search(tiny_parent, out=tmp_path / "copy", settings=[*SETTINGS, "costs=roofline"])
    assert set(closer.costs["block"]) == set(result.costs["block"])
    assert (closer.costs["params"] == result.costs["params"]).all()
    assert (closer.costs["decode_s"] != result.costs["decode_s"]).any()
    assert set(closer.costs["source"]) != set(result.costs["source"])


def test_too_little_text_says_how_much_there_is(tiny_parent: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Not much of a text.")
    with pytest.raises(PuzzleError, match=r"split has \d+ tokens of text"):
        search(
            tiny_parent, data=str(tmp_path / "short.txt"), out=tmp_path / "run", settings=SETTINGS
        )


def test_an_empty_run_directory_has_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(PuzzleError, match="there is no run in"):
        open_result(tmp_path)


@pytest.mark.slow
def test_on_the_embedded_parent_the_child_means_something(tmp_path: Path) -> None:
    """It changes both halves, mixes blocks, and loses clearly less than the uniform child."""
    few = [
        "tokens.calibration=4096",
        "tokens.scoring=2048",
        "tokens.evaluation=4096",
        "distill.tokens=2048",
        "choose.rounds=2",
        "heal.tokens=8192",
        "evaluate.items=50",
    ]
    result = search(out=tmp_path / "run", settings=few)
    blocks, own = result.architecture.blocks, result.models["parent"]["blocks"]
    assert len(set(blocks)) >= 3
    assert len({block.attention for block in blocks}) > 1
    assert len({block.ffn for block in blocks}) > 1
    assert str(blocks[0]) != own[0]
    kl = {
        model: result.value("KL to the parent", model) for model in ("uniform", "child", "healed")
    }
    assert kl["child"] < 0.8 * kl["uniform"]
    assert kl["healed"] < kl["child"]
    losses = result.scores[result.scores["loss"] > 0].groupby("layer")["loss"].median()
    assert losses.max() > 1.5 * losses.min()  # layers differ


def test_the_result_says_which_scores_are_exact_and_which_are_in_doubt(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = open_result(result.run.folder, "h100-1gpu")
    library = Library(result.run, open_parent(result.architecture.parent))
    swap = Swap(2, (result.architecture.blocks[2],))
    known = exact(library, [swap])[swap]["kl"]["mean"]
    assert result.scores["exact"].isna().all()  # the choice did without
    place = records.exact(swap.layer, swap.blocks)
    monkeypatch.setitem(result.solution, "exact", {place: known})
    del result.scores
    rows = result.scores
    chosen = rows[rows["chosen"] & (rows["layer"] == 2)]
    assert list(chosen["exact"]) == [known]
    assert rows["exact"].isna().any()
    monkeypatch.setattr("puzzle.score.SATURATED", 1e9)
    assert "second-order" not in result.reason()
    monkeypatch.setattr("puzzle.score.SATURATED", 0.0)
    assert "second-order score can tell" in result.reason()
    assert f"{result.predicted_kl:.3f}, measured" in result.reason()
    assert "<h2>Prediction</h2>" in result.report.read_text()


def test_a_parent_on_more_gpus_than_its_child_is_said(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = open_result(result.run.folder, "h100-1gpu")
    assert "GPUs" not in result.reason()
    monkeypatch.setitem(result.served("parent"), "gpus", 4)
    assert "The parent does not fit: it is reckoned on 4 GPUs instead of 1," in result.reason()


def test_another_teacher_heals_the_child_and_its_scores_stay_against_the_parent(
    result: Result, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As where the parent was pruned from a wider model: hidden sizes differ, logits do not."""
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=96, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(1)
    wider = transformers.LlamaForCausalLM(config)
    wider.save_pretrained(tmp_path / "wider")
    run = tmp_path / "run"
    shutil.copytree(result.run.folder, run)
    with pytest.warns(UserWarning, match="healing is by KL alone"):
        healed = search(
            result.architecture.parent,
            out=run,
            settings=[*SETTINGS, f"teacher={tmp_path / 'wider'}", "heal.learning_rate=1e-12"],
        )
    assert healed.architecture == result.architecture
    assert "cosine" not in healed.healing
    tokenizer = open_parent(result.architecture.parent).tokenizer
    cut = splits("embedded", tokenizer, length=32, tokens={"calibration": 1024}, seed=0)
    assert healed.value("KL to the parent", "child") == result.value("KL to the parent", "child")
    library = Library(healed.run, open_parent(result.architecture.parent))
    weights = healed.run.load_tensors(records.child(healed.name, "healed"))
    child = from_weights(library, healed.architecture.blocks, weights)
    read = Reading(wider.eval(), cut["calibration"])
    worth = evaluate_text(child, read, tokenizer=None, items=[])
    assert healed.healing["kl"].mean() == pytest.approx(worth.kl, rel=0.02)


def test_what_llama_cpp_could_not_read_is_said_before_anything_is_computed(
    tiny_parent: str, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    parent = Path(shutil.copytree(tiny_parent, tmp_path / "parent"))
    config = json.loads((parent / "config.json").read_text())
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    (parent / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    with pytest.raises(PuzzleError, match="the rotary scaling 'yarn' has no place in a GGUF file"):
        search(str(parent), out=tmp_path / "run", settings=[*SETTINGS, "target=llama.cpp"])
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_teacher_of_another_vocabulary_is_refused(tiny_parent: str, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "foreign")
    with pytest.raises(PuzzleError, match=r"a vocabulary of 97 tokens, .* one of 4096"):
        search(tiny_parent, out=tmp_path / "run", settings=[f"teacher={tmp_path / 'foreign'}"])


def test_a_search_that_fuses_heals_and_exports_the_fused_child(
    tiny_parent: str, tmp_path: Path
) -> None:
    """So few parameters that no layer may keep its attention, or more than half of its FFN."""
    budget = tmp_path / "small.yaml"
    budget.write_text(
        "description: small\nhardware: h100-sxm\n"
        "workload: {prompt_tokens: 200, new_tokens: 56, batches: [8], weights: bfloat16, "
        "kv: bfloat16}\nlimits: {params: 558000 params}\n"
    )
    space = ["target=hf", "space.attention=[noop]", "space.ffn=[50%]", "space.removal=1"]
    settings = [*SETTINGS, *space, "choose.rounds=1", "fuse=true"]
    found = search(tiny_parent, budget=str(budget), out=tmp_path / "run", settings=settings)
    assert " ".join(map(str, found.architecture.blocks)) == "noop+ffn512 noop+ffn512 noop+ffn512"
    written = Architecture.from_config(found.checkpoint)
    assert " ".join(map(str, written.blocks)) == "noop+ffn1024 noop+noop noop+ffn512"
    assert written.blocks == Architecture.from_config(export(found.run.folder, "hf")).blocks
    healed = found.run.load_tensors(f"children/{found.name}/healed")
    assert healed["model.layers.0.mlp.down_proj.weight"].shape == (64, 1024)
    assert (
        str(Architecture(tiny_parent, written.blocks))
        in found.checkpoint.joinpath("README.md").read_text()
    )
