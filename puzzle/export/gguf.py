"""A child as one GGUF file (architecture `deci`), which llama.cpp runs as it is.

Heads, KV heads and FFN widths are written one number a layer; a linear attention is a layer with
heads and no KV heads. llama.cpp turns neighboring channels of a head by one rotary angle where
Llama turns channel i and i + d/2, so the rows of q and k are put in its order. Scaled rotary
frequencies are written as the factors that divide the plain ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from puzzle.blocks.variant import FFN, GQA, Block, LinearMap
from puzzle.errors import PuzzleError
from puzzle.export.checkpoint import stored_dtype
from puzzle.export.modeling_puzzle import head_dim, query_heads
from puzzle.export.rewrite import Child
from puzzle.export.tokens import Vocabulary, read_vocabulary
from puzzle.modules import build_model, child_config, rotary

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.linear_attn": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SCALINGS = ("default", "linear", "llama3")  # of the rotary frequencies, by constant factors


def write_gguf(path: Path, child: Child, folder: Path) -> Path:
    """Write a child that `rewrite` made for llama.cpp, replacing the file; returns `path`.

    Matrices are stored as the parent's checkpoint stores them, vectors in float32.

    Args:
        folder: the parent's, with its tokenizer.

    Raises:
        PuzzleError: a tokenizer or rotary scaling that has no place in the file, a tensor too many
            or of another shape, a folder of this name, gguf not installed.
    """
    gguf = _library()
    if path.is_dir():
        raise PuzzleError(f"{path} is a folder; name the file, like {path / 'child.gguf'}")
    vocabulary = read_vocabulary(folder, child.config.vocab_size)
    tensors = _tensors(child)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    writer = gguf.GGUFWriter(new, "deci")
    try:
        _write_sizes(writer, child, gguf)
        _write_tokens(writer, vocabulary)
        for name, tensor in tensors.items():
            _write_tensor(writer, name, tensor, gguf)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return path


def check_writable(folder: Path, config: Any) -> None:
    """PuzzleError where children of this parent would have no place in a GGUF file."""
    read_vocabulary(folder, config.vocab_size)
    _check_scaling(config.rope_parameters)


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise PuzzleError(
            "a GGUF file is written by the package gguf; pip install 'puzzle-nas[gguf]'"
        ) from None
    return gguf


def head_counts(config: Any, block: Block) -> tuple[int, int]:
    """Query heads and KV heads of a layer, as the architecture `deci` tells its kinds apart."""
    if isinstance(block.attention, LinearMap):
        return config.num_attention_heads, 0
    if isinstance(block.attention, GQA):
        entry = child_config(config, [block]).block_configs[0]["attention"]
        return query_heads(config, entry), block.attention.kv_heads
    return 0, 0


def _write_sizes(writer: Any, child: Child, gguf: Any) -> None:
    config = child.config
    heads, kv_heads = zip(*(head_counts(config, block) for block in child.blocks))
    widths = [
        block.ffn.intermediate_size if isinstance(block.ffn, FFN) else 0 for block in child.blocks
    ]
    writer.add_block_count(len(child.blocks))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(widths)
    writer.add_head_count(list(heads))
    writer.add_head_count_kv(list(kv_heads))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    kinds = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16"}
    writer.add_file_type(gguf.LlamaFileType[kinds.get(stored_dtype(config), "MOSTLY_BF16")])


def _write_tokens(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.splitting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.adds_bos)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    if vocabulary.eos:
        writer.add_eos_token_id(vocabulary.eos[0])
    if len(vocabulary.eos) > 1:
        writer.add_eot_token_id(vocabulary.eos[-1])
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _tensors(child: Child) -> dict[str, torch.Tensor]:
    """Every tensor by its name in the file, in the dtype of the file."""
    config, dtype = child.config, stored_dtype(child.config)
    layout = build_model(config, child.blocks).state_dict()
    if config.tie_word_embeddings:
        del layout["lm_head.weight"]
    shapes = {name: tensor.shape for name, tensor in child.weights.items()}
    if shapes != {name: meta.shape for name, meta in layout.items()}:
        raise PuzzleError(
            f"{len(shapes)} tensors do not make the architecture, which holds {len(layout)}; "
            "assemble the child from the architecture that is exported"
        )
    found = {}
    for name, tensor in child.weights.items():
        where, _, parameter = name.rpartition(".")
        if where.endswith((".q_proj", ".k_proj")):
            tensor = _interleaved(tensor, config)
        layer, inside = "", where
        if where.startswith("model.layers."):
            _, _, index, inside = where.split(".", 3)
            layer = f"blk.{index}."
        stored = tensor.to(dtype if tensor.dim() > 1 else torch.float32)
        found[f"{layer}{NAMES[inside]}.{parameter}"] = stored
    factors = rope_factors(config)
    return found if (factors == 1).all() else {**found, "rope_freqs.weight": factors}


def _interleaved(rows: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of q or k with channels i and i + d/2 of every head side by side."""
    parts = rows.reshape(-1, 2, head_dim(config) // 2, *rows.shape[1:])
    return parts.transpose(1, 2).reshape(rows.shape)


def rope_factors(config: Any) -> torch.Tensor:
    """What the plain rotary frequencies are divided by [head_dim / 2]; 1 where not scaled."""
    rope = config.rope_parameters
    _check_scaling(rope)
    scaled = rotary(child_config(config, [])).get_buffer("inv_freq").double()
    exponents = torch.arange(len(scaled), dtype=torch.float64) / len(scaled)
    return (rope["rope_theta"] ** -exponents / scaled).float().round(decimals=6)


def _check_scaling(rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", "default")
    if kind not in SCALINGS:
        raise PuzzleError(
            f"the rotary scaling {kind!r} has no place in a GGUF file of this kind, only "
            f"{', '.join(SCALINGS)} have; export --for hf"
        )


def _write_tensor(writer: Any, name: str, tensor: torch.Tensor, gguf: Any) -> None:
    if tensor.dtype == torch.bfloat16:
        raw: np.ndarray = tensor.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, tensor.contiguous().numpy())
