"""The exported folder is the child: for Hugging Face with its code, and with ours registered."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from children import child_logits, parse, random_weights
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, MIXTURES, tiny_model

from puzzle.architecture import Architecture
from puzzle.assemble import gather
from puzzle.blocks.variant import GQA, Block
from puzzle.budget import Workload
from puzzle.errors import PuzzleError
from puzzle.export.checkpoint import (
    replacing,
    tensor_bytes,
    tensor_layout,
    write_checkpoint,
    write_weights,
)
from puzzle.export.modeling_puzzle import intermediate_size
from puzzle.export.targets import served
from puzzle.hardware.roofline import kv_bytes_per_sequence
from puzzle.library import Library
from puzzle.parent import Parent, open_parent
from puzzle.run import Run

LENGTH = 12  # tokens in the cache that clean_process.py measures; windows here are not shorter
ARCHITECTURES = {
    "heads": "gqa1+ffn96 gqa2+ffn300 gqa4+ffn32",
    "groups": "groups1+ffn96 gqa2+ffn64 groups1w12+ffn32",
    "noop-first": "noop+ffn32 gqa2+ffn96 gqa1+noop",
    "noop-middle": "gqa2+noop noop+ffn256 gqa1+ffn64",
    "noop-last": "gqa1+ffn64 noop+noop noop+ffn96",
    "linear": "linear+ffn96 gqa2+linear linear+linear",
    "window": "noop+linear gqa1w12+ffn96 gqa2+ffn32",
    "attentionless": "noop+ffn96 linear+ffn32 noop+noop",
}
AGAIN = "linear"  # the architecture that is saved again after loading
CASES = [f"{family}-{name}" for family in sorted(FAMILIES) for name in ARCHITECTURES]


@dataclass(frozen=True)
class Export:
    """A folder, and what was written there."""

    folder: Path
    parent: Parent
    blocks: tuple[Block, ...]  # as they are served
    logits: torch.Tensor


def architecture(name: str, family: str) -> tuple[Block, ...]:
    """An architecture, its FFNs written as mixtures where the family has those."""
    text = ARCHITECTURES[name]
    if family in MIXTURES:
        text = re.sub(r"ffn(\d+)", lambda ffn: f"moe{1 + int(ffn[1]) % 3}", text)
    return parse(text)


def export(folder: Path, parent: Parent, blocks: tuple[Block, ...], tokens: torch.Tensor) -> Export:
    weights = random_weights(parent.config, blocks)
    write_checkpoint(folder, parent, Architecture(parent.name, blocks), weights, card="# Card\n")
    stored = {name: tensor.to(parent.config.dtype).float() for name, tensor in weights.items()}
    logits = child_logits(parent.config, blocks, stored, tokens)
    written = tuple(served(parent.config.model_type, block) for block in blocks)
    return Export(folder, parent, written, logits)


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    """The embedded parent (bfloat16, with a tokenizer), given a chat template and a license."""
    folder = tmp_path_factory.mktemp("embedded") / "parent"
    shutil.copytree(open_parent("embedded").folder, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "LICENSE.txt").write_text("free")
    return open_parent(str(folder))


@pytest.fixture(scope="module")
def exports(
    checkpoints: dict[str, Path],
    embedded: Parent,
    batch: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Export]:
    """Every architecture of every family and its parent's, the embedded parent's, a sharded one."""
    root = tmp_path_factory.mktemp("exports")
    parents = {family: Parent(checkpoints[family], family) for family in FAMILIES}
    made = {
        f"{family}-{name}": export(
            root / f"{family}-{name}", parent, architecture(name, family), batch
        )
        for family, parent in parents.items()
        for name in ARCHITECTURES
    }
    blocks = parse("gqa2+ffn512 noop+ffn600 gqa1+noop gqa4+ffn1024")
    for family, parent in parents.items():
        run = Run(tmp_path_factory.mktemp("run"))
        made[f"{family}-parent"] = export_parent(root / f"{family}-parent", run, parent, batch)
    made["embedded"] = export(root / "embedded", embedded, blocks, batch)
    made["sharded"] = sharded(made["qwen3-heads"], root / "sharded")
    return made


def export_parent(folder: Path, run: Run, parent: Parent, tokens: torch.Tensor) -> Export:
    """The parent's own blocks, as the library gathers them; the logits are transformers' own."""
    weights = gather(Library(run, parent), parent.blocks)
    architecture = Architecture(parent.name, parent.blocks)
    write_checkpoint(folder, parent, architecture, weights, card="")
    with torch.no_grad():
        logits = tiny_model(parent.name)(tokens).logits
    return Export(folder, parent, parent.blocks, logits)


def sharded(whole: Export, folder: Path) -> Export:
    """The same export with its weights in files of at most 40 kB."""
    shutil.copytree(whole.folder, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_weights(
        folder, weights, tensor_layout(whole.parent.config, whole.blocks), shard_bytes=40_000
    )
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return Export(folder, whole.parent, whole.blocks, whole.logits)


def run_clean(root: Path, folders: list[Path], **request: Any) -> dict[str, Any]:
    """What clean_process.py says of the folders."""
    asked, out = root / "request.json", root / "answer.json"
    asked.write_text(json.dumps({"folders": [*map(str, folders)], "out": str(out), **request}))
    env = os.environ | {"HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("clean_process.py")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", script, asked],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not done.stderr, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def answers(
    exports: dict[str, Export], batch: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Measurements in two clean processes: `registered`, and `remote` with the folders' code.

    The second also loads what the first saved again.
    """
    expected = {name: made.logits.clone() for name, made in exports.items()}
    again = [f"{family}-{AGAIN}" for family in FAMILIES]
    expected |= {f"{name}-again": exports[name].logits.clone() for name in again}
    root = tmp_path_factory.mktemp("processes")
    save_file({"tokens": batch, **expected}, root / "expected.safetensors")
    request = {"expected": str(root / "expected.safetensors"), "again": again}
    folders = [made.folder for made in exports.values()]
    registered = run_clean(root, folders, register=True, **request)
    folders += [exports[name].folder.with_name(f"{name}-again") for name in again]
    return {
        "registered": registered,
        "remote": run_clean(root, folders, register=False, **request),
    }


@pytest.mark.parametrize("how", ["remote", "registered"])
def test_the_folder_gives_the_childs_logits(how: str, answers: dict[str, dict[str, Any]]) -> None:
    errors = {name: found["error"] for name, found in answers[how].items() if "error" in found}
    assert len(errors) >= len(CASES)
    assert max(errors.values()) < 1e-5, errors


def test_code_comes_from_the_folder_or_from_puzzle_once_registered(
    answers: dict[str, dict[str, Any]],
) -> None:
    assert answers["remote"]["process"] == {"puzzle": False, "registered_early": False}
    assert answers["registered"]["process"] == {"puzzle": True, "registered_early": False}
    for name in CASES:
        assert answers["remote"][name]["module"].startswith("transformers_modules.")
        assert answers["registered"][name]["module"] == "puzzle.export.modeling_puzzle"


@pytest.mark.parametrize("case", CASES)
def test_cached_generation_equals_uncached(case: str, answers: dict[str, dict[str, Any]]) -> None:
    found = answers["remote"][case]
    assert found["cached"] == found["uncached"]
    assert found["stepwise_error"] < 1e-5
    assert found["left_padded"] == found["cached"]


@pytest.mark.parametrize("case", CASES)
def test_sizes_are_those_that_costs_count(
    case: str, exports: dict[str, Export], answers: dict[str, dict[str, Any]]
) -> None:
    made, found = exports[case], answers["remote"][case]
    shape = made.parent.shape
    assert found["parameters"] == shape.model_params(made.blocks)
    assert found["tied"] == shape.tied
    stored = load_file(made.folder / "model.safetensors")
    assert sum(map(tensor_bytes, stored.values())) == 4 * shape.model_params(made.blocks)
    workload = Workload(
        prompt_tokens=LENGTH - 2, new_tokens=2, batches=(2,), weights="float32", kv="float32"
    )
    per_sequence = sum(
        kv_bytes_per_sequence(shape, block.attention, workload) for block in made.blocks
    )
    assert found["kv_bytes"] == 2 * per_sequence  # two sequences


@pytest.mark.parametrize("how", ["remote", "registered"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_loaded_model_saves_again_and_loads_bare(
    how: str, family: str, answers: dict[str, dict[str, Any]]
) -> None:
    found = answers[how][f"{family}-{AGAIN}"]
    assert found["again_error"] == 0
    assert found["bare_error"] == 0


def test_the_embedded_parents_child_keeps_dtype_tokenizer_and_license(
    embedded: Parent, exports: dict[str, Export], answers: dict[str, dict[str, Any]]
) -> None:
    folder = exports["embedded"].folder
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for name in ("chat_template.jinja", "LICENSE.txt", "generation_config.json"):
        assert (folder / name).read_text() == (embedded.folder / name).read_text()
    assert (folder / "README.md").read_text() == "# Card\n"
    for how in ("remote", "registered"):
        assert answers[how]["embedded"]["ids"] == embedded.tokenizer("a cat sat")["input_ids"]


def test_a_deci_lm_config_has_every_key_engines_read(exports: dict[str, Export]) -> None:
    made = exports["llama-noop-middle"]  # gqa2+noop noop+ffn256 gqa1+ffn64
    config = json.loads((made.folder / "config.json").read_text())
    wanted = {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {
            "AutoConfig": "configuration_puzzle.DeciLMConfig",
            "AutoModel": "modeling_puzzle.DeciLMModel",
            "AutoModelForCausalLM": "modeling_puzzle.DeciLMForCausalLM",
        },
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "torch_dtype": "float32",
        "dtype": "float32",
        "num_hidden_layers": 3,
        "head_dim": 16,
        "intermediate_size": 96,
        "num_key_value_heads": 2,
    }
    assert wanted.items() <= {key: config[key] for key in wanted}.items()
    assert not any(str(key).startswith("_") for key in config)
    assert config["block_configs"] == [
        {"attention": attention(2), "ffn": ffn(None, no_op=True)},
        {"attention": attention(None, no_op=True), "ffn": ffn(6.0)},
        {"attention": attention(4), "ffn": ffn(6.0)},
    ]


def attention(heads_in_group: int | None, **flags: bool) -> dict[str, Any]:
    return {
        "n_heads_in_group": heads_in_group,
        "no_op": False,
        "replace_with_linear": False,
        "num_sink_tokens": None,
        "sparsify": None,
        "unshifted_sink": False,
        "use_prefill_window_in_sink_attention": False,
        "window_length": None,
    } | flags


def ffn(mult: float | None, **flags: bool) -> dict[str, Any]:
    return {
        "ffn_mult": mult,
        "no_op": False,
        "replace_with_linear": False,
        "sparsify": None,
    } | flags


def test_the_first_layers_ffn_mult_is_written_as_a_float(exports: dict[str, Export]) -> None:
    config = json.loads((exports["llama-noop-first"].folder / "config.json").read_text())
    assert '"ffn_mult": 6.0' in json.dumps(config["block_configs"][0])


@pytest.mark.parametrize("hidden", [576, 1000, 3072, 4096, 5120, 7168, 8192])
def test_every_padded_width_survives_ffn_mult(hidden: int, checkpoints: dict[str, Path]) -> None:
    config = Parent(checkpoints["llama"], "llama").config
    config.hidden_size = hidden
    for width in range(256, 8 * hidden, 256):
        assert intermediate_size(config, {"ffn_mult": 3 * width / (2 * hidden)}) == width


def test_other_families_write_widths_as_they_are(exports: dict[str, Export]) -> None:
    config = json.loads((exports["qwen3-heads"].folder / "config.json").read_text())
    assert config["model_type"] == "puzzle-qwen3"
    assert [block["ffn"]["intermediate_size"] for block in config["block_configs"]] == [96, 300, 32]
    nemotron = json.loads((exports["nemotron-heads"].folder / "config.json").read_text())
    assert nemotron["partial_rotary_factor"] == 0.5


def test_rope_scaling_is_written_in_both_forms(
    checkpoints: dict[str, Path], tmp_path: Path, batch: torch.Tensor
) -> None:
    parent = Parent(checkpoints["llama"], "llama")
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    }
    parent.config.rope_parameters = {"rope_theta": 5e5, **scaling}
    made = export(tmp_path / "child", parent, parent.blocks, batch)
    config = json.loads((made.folder / "config.json").read_text())
    assert config["rope_scaling"] == scaling
    assert config["rope_parameters"] == {"rope_theta": 5e5, **scaling}
    assert config["rope_theta"] == 5e5


def test_padding_is_exact_zeros_behind_the_childs_own_channels(
    checkpoints: dict[str, Path], exports: dict[str, Export]
) -> None:
    made = exports["llama-tied-heads"]  # with biases; 300 channels become 512
    stored = load_file(made.folder / "model.safetensors")
    own = random_weights(made.parent.config, parse(ARCHITECTURES["heads"]))
    for half, rows in (("gate_proj", True), ("up_proj", True), ("down_proj", False)):
        name = f"model.layers.1.mlp.{half}.weight"
        wide, narrow = (stored[name], own[name]) if rows else (stored[name].T, own[name].T)
        assert wide.shape == (512, 64)
        assert torch.equal(wide[:300], narrow)
        assert not wide[300:].any()
    bias = stored["model.layers.1.mlp.up_proj.bias"]
    assert bias.shape == (512,)
    assert bias[:300].any()
    assert not bias[300:].any()


@pytest.fixture
def parent(checkpoints: dict[str, Path]) -> Parent:
    return Parent(checkpoints["llama"], "llama")


def write(folder: Path, parent: Parent, text: str = "gqa1+noop") -> Path:
    weights = random_weights(parent.config, parse(text))
    return write_checkpoint(folder, parent, Architecture("x", parse(text)), weights, card=text)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill_while_writing(folder: Path) -> None:
    """Have a process begin an export and be killed in the middle."""
    process = os.fork()
    if process == 0:
        try:
            with replacing(folder, 0) as new:
                (new / "model.safetensors").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_killed_write_leaves_what_was_there(parent: Parent, tmp_path: Path) -> None:
    folder = write(tmp_path / "child", parent)
    before = (folder / "model.safetensors").read_bytes()
    kill_while_writing(folder)
    kill_while_writing(tmp_path / "fresh")
    assert listing(tmp_path) == [".child.new", ".fresh.new", "child"]
    assert (folder / "model.safetensors").read_bytes() == before
    write(folder, parent, "gqa2+noop")
    write(tmp_path / "fresh", parent)
    assert listing(tmp_path) == ["child", "fresh"]
    assert (folder / "README.md").read_text() == "gqa2+noop"


def test_killed_between_the_renames_the_earlier_export_comes_back(
    parent: Parent, tmp_path: Path
) -> None:
    folder = write(tmp_path / "child", parent)
    folder.rename(tmp_path / ".child.old")
    with pytest.raises(RuntimeError), replacing(folder, 0):
        raise RuntimeError
    assert listing(tmp_path) == ["child"]
    assert (folder / "README.md").read_text() == "gqa1+noop"


def test_a_folder_of_someone_else_is_not_replaced(parent: Parent, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PuzzleError, match="no checkpoint that Puzzle wrote; choose another"):
        write(tmp_path, parent)
    assert listing(tmp_path) == ["notes.txt"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(PuzzleError, match=r"out of disk: .* needs .* MiB are free; make room"),
        replacing(tmp_path / "child", 1 << 62),
    ):
        pytest.fail("nothing may be written")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"lacks 1 of 12 tensors, model\.norm\.weight the first"),
        ({"model.x": torch.zeros(1)}, r"no place for 1 of 13 tensors, model\.x the first"),
        (
            {"model.layers.0.self_attn.k_proj.weight": torch.zeros(8, 64)},
            r"k_proj\.weight has shape \[8, 64\], the architecture needs \[16, 64\]",
        ),
        (
            {"model.layers.0.mlp.up_proj.weight": torch.zeros(300, 64)},
            r"up_proj\.weight has shape \[300, 64\], the architecture needs \[256, 64\]",
        ),
    ],
)
def test_tensors_that_do_not_make_the_architecture_are_refused(
    change: dict[str, Any], message: str, parent: Parent, tmp_path: Path
) -> None:
    weights = random_weights(parent.config, parse("gqa1+ffn96")) | change
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    architecture = Architecture("x", parse("gqa1+ffn96"))
    with pytest.raises(PuzzleError, match=message):
        write_checkpoint(tmp_path / "child", parent, architecture, weights, card="")
    assert listing(tmp_path) == []


def test_windows_are_as_long_as_the_cache_that_is_measured() -> None:
    windows = [
        block.attention.window or LENGTH
        for text in ARCHITECTURES.values()
        for block in parse(text)
        if isinstance(block.attention, GQA)
    ]
    assert min(windows) == LENGTH
