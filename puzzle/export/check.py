"""Does an exported folder load anywhere as what it holds? And which engine takes it?

    puzzle check FOLDER            python -m puzzle.export.check FOLDER

The folder is loaded by a clean process with its own code, as where Puzzle is not installed; the
same model is built here from its configuration and tensors, by the classes that made the child.
Their logits are compared in float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from puzzle.errors import PuzzleError
from puzzle.export.gguf import check_writable
from puzzle.export.register import register
from puzzle.export.targets import refusal
from puzzle.modules import Weights, load
from puzzle.nemotron_nas import MODEL_TYPE, blocks_of

TOLERANCE = 1e-5  # of a float32 logit, relative to the largest
SEQUENCES, TOKENS = 2, 32
LOADER = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder, asked, answer = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
with torch.no_grad():
    logits = model.eval()(load_file(asked)["tokens"]).logits
assert not any(name.partition(".")[0] == "puzzle" for name in sys.modules)
save_file({"logits": logits.contiguous()}, answer)
"""


def check(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Pairs of an engine and what it makes of the folder; that of Hugging Face is measured.

    Raises:
        PuzzleError: no exported folder, one that does not load, or other logits there than here.
    """
    path = Path(folder)
    if not (path / "configuration_puzzle.py").exists():
        raise PuzzleError(f"{folder} is no checkpoint that Puzzle wrote; puzzle export makes one")
    fields = json.loads((path / "config.json").read_text())
    yield "Hugging Face", _measured(path, fields)
    yield "vLLM", _verdict("vllm", fields) or "yes"
    yield "llama.cpp", _verdict("llama.cpp", fields) or _gguf(path)
    yield "TensorRT-LLM, SGLang", _others(fields)


def _measured(folder: Path, fields: dict[str, Any]) -> str:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, fields["vocab_size"], (SEQUENCES, TOKENS), generator=draw)
    wanted, found = _child_logits(folder, tokens), _loaded_logits(folder, tokens)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error <= TOLERANCE:
        raise PuzzleError(
            f"{folder} loads, but its logits are {error:.2g} from those of Puzzle's own classes, "
            f"relative to the largest; {TOLERANCE:g} is allowed: export the child again"
        )
    return f"loads in a clean process; logits within {error:.1g} of those here, in float32"


@torch.no_grad()
def _child_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """What the tensors of the folder make of the tokens, in classes of the installed Puzzle."""
    from puzzle.export import configuration_puzzle, modeling_puzzle

    fields = json.loads((folder / "config.json").read_text())
    name = fields["architectures"][0]
    config_name = fields["auto_map"]["AutoConfig"].partition(".")[2]
    config = getattr(configuration_puzzle, config_name).from_pretrained(folder)
    tensors: Weights = {}
    for file in folder.glob("*.safetensors"):
        tensors |= {name: tensor.float() for name, tensor in load_file(file).items()}
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    model = getattr(modeling_puzzle, name)(config).eval()
    load(model, tensors)
    return model(tokens).logits


def _loaded_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """What a clean process makes of them, that knows the folder alone."""
    with tempfile.TemporaryDirectory() as room:
        asked, answer = Path(room, "asked.safetensors"), Path(room, "answer.safetensors")
        save_file({"tokens": tokens}, asked)
        command = [sys.executable, "-I", "-c", LOADER, *map(str, (folder.resolve(), asked, answer))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=room, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise PuzzleError(f"{folder} does not load in a clean process: {last}")
        return load_file(answer)["logits"]


def _verdict(target: Any, fields: dict[str, Any]) -> str:
    """Why an engine does not take the blocks as they are written; empty where it does."""
    if fields["model_type"] != MODEL_TYPE:
        return f"no: models of type {fields['model_type']} load in Hugging Face alone"
    for layer, block in enumerate(blocks_of(fields)):
        if reason := refusal(target, layer, block):
            return f"no: layer {layer} holds {block}, and {reason}; puzzle export --for {target}"
    return ""


def _gguf(folder: Path) -> str:
    """Whether the tokenizer and the positions have a place in a GGUF file, too."""
    register()
    try:
        check_writable(folder, AutoConfig.from_pretrained(folder))
    except PuzzleError as error:
        return f"no: {error}"
    return "yes, as the GGUF file of puzzle export --for llama.cpp"


def _others(fields: dict[str, Any]) -> str:
    if fields["model_type"] != MODEL_TYPE:
        return "no"
    return "read the same format; not tried"


def main() -> None:
    """Print the verdicts on the folder named on the command line."""
    try:
        for engine, verdict in check(sys.argv[1]):
            print(f"{engine:22}{verdict}")
    except PuzzleError as error:
        sys.exit(f"puzzle: {error}")


if __name__ == "__main__":
    main()
