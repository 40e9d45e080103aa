"""Children in the DeciLM format read back as architectures, with the published parameter counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puzzle import Architecture
from puzzle.blocks.variant import FFN, Block
from puzzle.errors import PuzzleError
from puzzle.hardware.published import config_of, model
from puzzle.modules import block_config


def published(name: str) -> dict[str, Any]:
    """The config.json of a shipped child, with `block_configs` as they are published."""
    shape, blocks = model(name)
    entries = [block_config(block, shape.heads, shape.heads // shape.kv_heads) for block in blocks]
    for block, entry in zip(blocks, entries):
        del entry["ffn"]["intermediate_size"]
        if isinstance(block.ffn, FFN):
            entry["ffn"]["ffn_mult"] = 3 * block.ffn.intermediate_size / (2 * shape.hidden_size)
    return {
        **config_of(name),
        "model_type": "nemotron-nas",
        "num_key_value_heads": None,
        "intermediate_size": None,
        "block_configs": entries,
    }


@pytest.mark.parametrize(
    ("name", "params"),
    [("nemotron-super-49b", 49_867_145_216), ("nemotron-ultra-253b", 253_401_268_224)],
)
def test_a_published_config_is_an_architecture(name: str, params: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published(name)))
    whole = Architecture.from_config(tmp_path, "llama-3.1")
    assert whole.parent == "llama-3.1"
    assert whole == Architecture.from_config(tmp_path / "config.json", "llama-3.1")
    shape, blocks = model(tmp_path)
    assert whole.blocks == blocks == model(name)[1]
    assert shape.model_params(blocks) == params
    assert (shape.kv_heads, shape.intermediate_size) == (8, model(name)[0].intermediate_size)


def test_every_block_of_the_format_reads_back(tmp_path: Path) -> None:
    texts = ["gqa8+ffn300", "linear+linear", "noop+noop", "gqa2w64+noop", "groups5+linear"]
    fields = published("nemotron-super-49b") | {
        "num_hidden_layers": len(texts),
        "block_configs": [block_config(Block.parse(text), 64, 8) for text in texts],
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert [str(block) for block in Architecture.from_config(tmp_path).blocks] == texts
    assert model(tmp_path)[0].kv_heads == 8


def test_a_layer_that_is_not_of_the_format_is_named(tmp_path: Path) -> None:
    fields = published("nemotron-super-49b")
    fields["block_configs"][7] = {"attention": {"no_op": True}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(PuzzleError, match=r"block_configs of layer 7 hold no attention and FFN"):
        Architecture.from_config(tmp_path)
