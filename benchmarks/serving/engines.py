"""Do engines compute what the child computes? Greedy tokens and log-probabilities, in float32.

    python benchmarks/serving/engines.py WORK PARENT [vllm=PYTHON] [llama_cpp=PYTHON]

Of PARENT (`embedded`, `random`, or a checkpoint folder) a child is made that holds every kind of
block its target can be given, rewritten ones among them; it is exported for each engine and run
there, in a process of its own and with the interpreter named (transformers always with this one).
The child itself, in memory and never written, is the reference. vLLM is asked twice: with the
folder's own code trusted, and by the plugin of the Puzzle installed beside it. The parent `random`
has what the embedded one lacks: an untied head, biases, fewer KV heads, scaled rotary frequencies.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).parents[1]))
import record

from puzzle.architecture import Architecture
from puzzle.blocks.attention import initial_attention
from puzzle.blocks.ffn import initial_ffn
from puzzle.blocks.variant import FFN, GQA, Block, LinearMap, NoOp
from puzzle.export.checkpoint import write_checkpoint
from puzzle.export.gguf import write_gguf
from puzzle.export.rewrite import Child, rewrite
from puzzle.modules import Weights, build_model, load
from puzzle.parent import Parent, open_parent

TEXT = "The museum opened in 1897, and its first director wrote: 'nothing here is lost.'\n\tTwo"
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 24, 32
CLOSE = 1e-3  # of log-probabilities in float32, whose sums engines order differently


def parent_in_float32(name: str, work: Path) -> Parent:
    """A copy of the parent whose checkpoints are float32, so that nothing is rounded."""
    folder = work / "parent"
    if not folder.exists():
        shutil.copytree(open_parent("embedded" if name == "random" else name).folder, folder)
        if name == "random":
            write_random(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}))
    return open_parent(str(folder))


def write_random(folder: Path) -> None:
    """A random Llama in place of the weights there."""
    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=9,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        attention_bias=True,
        mlp_bias=True,
        bos_token_id=0,
        eos_token_id=0,
        rope_parameters={**scaling, "original_max_position_embeddings": 64},
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        mean = 0.0 if parameter.dim() > 1 else float(parameter.detach().mean())
        torch.nn.init.normal_(parameter, mean, 0.1)
    model.save_pretrained(folder)


def every_block(parent: Parent) -> tuple[Block, ...]:
    """The parent with a block of each kind in its layers, the first without attention."""
    own = parent.blocks[0]
    assert isinstance(own.attention, GQA)
    assert isinstance(own.ffn, FFN)
    fewer, narrow = GQA(1), FFN(own.ffn.intermediate_size // 4 + 8)
    kinds = [
        Block(NoOp(), own.ffn),
        Block(fewer, own.ffn),
        Block(own.attention, LinearMap()),
        Block(LinearMap(), narrow),
        Block(own.attention, NoOp()),
        Block(NoOp(), NoOp()),
        Block(NoOp(), narrow),
    ]
    return (*kinds, *parent.blocks[len(kinds) :])


def child_of(parent: Parent, blocks: tuple[Block, ...]) -> Child:
    """The child whose blocks start from the parent's layers."""
    weights: Weights = parent.outside_weights()
    for layer, block in enumerate(blocks):
        own = parent.layer_weights(layer)
        norms = own["mlp.down_proj.weight"].norm(dim=0)
        half = initial_attention(block.attention, own, parent.shape.head_dim)
        half |= initial_ffn(block.ffn, own, norms.argsort(descending=True))
        weights |= {f"model.layers.{layer}.{name}": tensor for name, tensor in half.items()}
    return Child(parent.config, blocks, weights)


@torch.no_grad()
def reference(parent: Parent, child: Child) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is asked of every engine, and what the child itself answers."""
    model = build_model(child.config, child.blocks)
    load(model, {"lm_head.weight": child.weights[parent.head_name]} | child.weights)
    model.tie_weights()
    draw = torch.Generator().manual_seed(0)
    size = parent.shape.vocab_size
    prompts = torch.randint(1, size, (PROMPTS, PROMPT_TOKENS), generator=draw)
    stream, tokens, logprobs = prompts, [], []
    for _ in range(NEW_TOKENS):
        best = model(stream, use_cache=False).logits[:, -1].log_softmax(-1).max(-1)
        tokens.append(best.indices)
        logprobs.append(best.values)
        stream = torch.cat([stream, best.indices[:, None]], dim=1)
    asked = {"prompts": prompts.tolist(), "new_tokens": NEW_TOKENS, "text": TEXT}
    return asked, {
        "tokens": torch.stack(tokens, 1).tolist(),
        "logprobs": torch.stack(logprobs, 1).tolist(),
        "text": parent.tokenizer(TEXT)["input_ids"],
    }


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What differs: prompts with other tokens, the largest gap of a log-probability, text."""
    same = [a == b for a, b in zip(found["tokens"], wanted["tokens"])]
    gaps = torch.tensor(found["logprobs"]) - torch.tensor(wanted["logprobs"])
    gap = float(gaps[torch.tensor(same)].abs().max()) if any(same) else float("nan")
    differs = [
        f"{len(same) - sum(same)} of {len(same)} continuations" if not all(same) else "",
        f"log-probabilities by {gap:.2g}" if not gap < CLOSE else "",
        "tokens of a text" if found["text"] != wanted["text"] else "",
    ]
    verdict = ", ".join(filter(None, differs)) or "equal"
    return {"verdict": verdict, "logprob_error": gap, "version": found["version"]}


def ask(python: str, script: str, model: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What an engine answers, in its own interpreter."""
    work = model.parent
    request, answer = work / f"{script}.asked.json", work / f"{script}.answer.json"
    request.write_text(json.dumps(asked))
    here = Path(__file__).parent
    command = [python, str(here / f"{script}.py"), str(model), str(request), str(answer)]
    printed = work / f"{script}.txt"
    with printed.open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed, see {printed}:\n{printed.read_text()[-2000:]}")
    return json.loads(answer.read_text())


def main() -> None:
    """Export for every engine named, run it, and record what came of it."""
    work, name = Path(sys.argv[1]), sys.argv[2]
    pythons = dict(word.split("=", 1) for word in sys.argv[3:])
    work.mkdir(parents=True, exist_ok=True)
    parent = parent_in_float32(name, work)
    child = child_of(parent, every_block(parent))
    asked, wanted = reference(parent, child)
    whole = Architecture(name, child.blocks)
    for target in ("hf", "vllm"):
        write_checkpoint(work / target, parent, whole, child.weights, card="", target=target)
    write_gguf(work / "child.gguf", rewrite(child, "llama.cpp"), parent.folder)
    trials = [
        ("transformers", sys.executable, "in_transformers", "hf", {}),
        ("vllm", pythons.get("vllm"), "in_vllm", "vllm", {"trust": True}),
        ("vllm_plugin", pythons.get("vllm"), "in_vllm", "vllm", {"trust": False}),
        ("llama_cpp", pythons.get("llama_cpp"), "in_llama_cpp", "child.gguf", {}),
    ]
    rows = []
    for engine, python, script, model, extra in trials:
        if python:
            found = compare(ask(python, script, work / model, asked | extra), wanted)
            rows.append({"kind": "engine", "engine": engine, **found})
            print(engine, found)
    label = Path(name).name
    blocks = [{"kind": "blocks", "blocks": " ".join(map(str, child.blocks))}]
    verdicts = {row["engine"]: row["verdict"] for row in rows}
    summary = verdicts if label == "embedded" else {label: verdicts}
    record.update("serving", ("parent", label), summary, [*blocks, *rows])


if __name__ == "__main__":
    main()
