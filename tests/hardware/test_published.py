"""Models that come as sizes: their parameters are those published, their files say from where."""

import pytest

from puzzle.architecture import Architecture
from puzzle.blocks.variant import FFN, Block
from puzzle.errors import PuzzleError
from puzzle.hardware.published import SHIPPED, config_of, model, names


@pytest.mark.parametrize(
    ("name", "layers", "params"),
    [
        ("llama-3.1-8b", 32, 8_030_261_248),
        ("llama-3.1-70b", 80, 70_553_706_496),
        ("llama-3.1-405b", 126, 405_853_388_800),
        ("mistral-7b", 32, 7_248_023_552),
        ("mixtral-8x7b", 32, 46_702_792_704),
        ("nemotron-super-49b", 80, 49_867_145_216),
        ("nemotron-ultra-253b", 162, 253_401_268_224),
    ],
)
def test_parameters_are_those_published(name, layers, params):
    shape, blocks = model(name)
    assert len(blocks) == layers
    assert shape.model_params(blocks) == params


def test_every_shipped_model_names_its_source():
    assert len(names()) == 7
    for name in names():
        path = next(SHIPPED.glob(f"{name}.*"))
        assert "source" in path.read_text()
        model(name)


def test_ultra_holds_fused_ffns_wider_than_the_parents_and_the_layers_they_emptied():
    shape, blocks = model("nemotron-ultra-253b")
    widths = [block.ffn.intermediate_size for block in blocks if isinstance(block.ffn, FFN)]
    assert max(widths) == 425984 == 8 * shape.intermediate_size
    assert sum(width > shape.intermediate_size for width in widths) == 4
    assert blocks.count(Block.parse("noop+noop")) == 81
    text = str(Architecture("llama-3.1-405b", blocks))
    assert Architecture.parse(text).blocks == blocks


def test_a_users_files_are_read_and_refused_with_a_sentence(tmp_path):
    config = '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, '
    config += '"num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 97}'
    (tmp_path / "config.json").write_text(config)
    mine = tmp_path / "mine.txt"
    mine.write_text("parent: config.json\ngqa4+ffn48\nnoop+noop\n")
    shape, blocks = model(tmp_path)
    assert (len(blocks), shape.hidden_size) == (2, 64)
    assert model(mine) == (shape, (Block.parse("gqa4+ffn48"), Block.parse("noop+noop")))
    assert config_of(mine)["hidden_size"] == 64
    mine.write_text("gqa4+ffn48\n")
    with pytest.raises(PuzzleError, match=r"mine\.txt names no parent"):
        model(mine)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PuzzleError, match=r"config\.json line 1: not JSON"):
        model(tmp_path)
    with pytest.raises(PuzzleError, match=r"did you mean 'llama-3\.1-70b'"):
        model("llama-3.1-70")
