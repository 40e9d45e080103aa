"""The configuration loads strictly: every mistake is one sentence with the key and the line."""

from pathlib import Path

import pytest

from puzzle.config import Config, Local, load_config
from puzzle.errors import PuzzleError

TYPO = """\
seed: 3
distill:
  # a slip of the finger
  lerning_rate: 1e-3
  tokens: 1024
"""


@pytest.fixture
def write(tmp_path: Path):
    def to_file(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return to_file


def sentence(path: Path | None, *overrides: str) -> str:
    with pytest.raises(PuzzleError) as error:
        load_config(path, overrides)
    return str(error.value).removeprefix(f"{path.parent}/" if path else "")


def test_defaults_are_the_embedded_demonstration():
    config = load_config()
    assert config == Config()
    assert (config.model, config.data, config.budget) == ("embedded", "embedded", "h100-1gpu")


def test_an_empty_file_is_the_defaults(write):
    assert load_config(write("# nothing yet\n")) == Config()


def test_a_nested_typo_is_named_with_its_line(write):
    assert sentence(write(TYPO)) == (
        "run.yaml line 4: unknown key 'lerning_rate' in distill; did you mean 'learning_rate'?"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nbugdet: x", "run.yaml line 2: unknown key 'bugdet'; did you mean 'budget'?"),
        (
            "score: {zzz: 1}",
            "run.yaml line 1: unknown key 'zzz' in score; known are samples, exact",
        ),
        ("seed: 1\nseed: 2", "run.yaml line 2: key 'seed' appears twice"),
        ("seed: many", "run.yaml line 1: seed is 'many', expected a whole number"),
        ("seed: 1.5", "run.yaml line 1: seed is 1.5, expected a whole number"),
        ("seed: -1", "run.yaml line 1: seed is -1, expected at least 0"),
        ("model: 7", "run.yaml line 1: model is 7, expected a text"),
        ("target: tgi", "run.yaml line 1: target is 'tgi', expected 'vllm', 'hf' or 'llama.cpp'"),
        ("heal:\n  kl: much", "run.yaml line 2: heal.kl is 'much', expected a number"),
        ("heal: 3", "run.yaml line 1: heal is 3, expected a mapping of keys"),
        ("space:\n  keep: 3", "run.yaml line 2: space.keep is 3, expected a list"),
        (
            "space:\n  ffn:\n  - 100%\n  - 120%",
            "run.yaml line 4: space.ffn[1] is '120%', expected a percentage above 0% and up to "
            "100%",
        ),
        (
            "space: {attention: [gqa0]}",
            "run.yaml line 1: space.attention[0] is 'gqa0', expected a percentage like 50%, or a "
            "variant (attention variant 'gqa0' is unknown; write gqa2, gqa8w1024, groups2, linear "
            "or noop)",
        ),
        ("- 1", "run.yaml line 1: expected `key: value` lines, found [1]"),
        ("a: [1", "run.yaml line 1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed: x\nfirst: 1", "run.yaml line 1: seed is 'x', expected a whole number"),
    ],
)
def test_sentences(write, text, expected):
    assert sentence(write(text)) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distil.tokens=3", "unknown key 'distil'; did you mean 'distill'?"),
        ("distill.token=3", "unknown key 'token' in distill; did you mean 'tokens'?"),
        ("distill.tokens=x", "distill.tokens is 'x', expected a whole number"),
        ("distill.tokens", "write key=value, like distill.tokens=65536"),
        ("seed+=3", "seed is not a list; write = instead of +="),
        ("space.ffn=[", "'[' is not a YAML value"),
    ],
)
def test_overrides_are_blamed_as_written(override, expected):
    assert sentence(None, override) == f"--set {override}: {expected}"


def test_a_missing_file_is_said(tmp_path):
    assert "cannot be read" in sentence(tmp_path / "absent.yaml")


def test_overrides_win_over_the_file_in_order(write):
    path = write("seed: 3\nspace: {ffn: [100%]}")
    config = load_config(path, ["seed=4", "seed=5", "space.ffn+=noop", "heal.learning_rate=1e-4"])
    assert config.seed == 5
    assert config.space.ffn == ("100%", "noop")
    assert config.heal.learning_rate == 1e-4


def test_appending_starts_from_the_defaults():
    config = load_config(None, ["space.attention+=gqa2"])
    assert config.space.attention == (*Config().space.attention, "gqa2")


def test_what_is_written_reads_back(write):
    config = load_config(None, ["space.keep=[0, 7]", "heal.kl=0.5", "model=some/model"])
    assert load_config(write(config.to_yaml())) == config


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1


@pytest.mark.parametrize("length", [1, 250, 256, 384, 1100, 1536, 2048, 4096])
@pytest.mark.parametrize("tokens", [0, 1, 2_047, 65_536, 98_304])
def test_training_reads_the_tokens_it_was_given(tokens, length):
    """Up to a batch, of sequences that are whole; never none of some."""
    options = Local(tokens=tokens)
    step = options.batch(length) * length
    assert options.batch(length) == 1 or step <= options.batch_tokens
    read = options.steps(length) * step
    assert read in (
        [0] if not tokens else [step] if tokens < step else range(tokens - step + 1, tokens + 1)
    )
