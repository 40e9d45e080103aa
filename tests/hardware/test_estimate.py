"""`puzzle estimate`: from a name or a file to a table, without weights."""

import pytest

from puzzle.errors import PuzzleError
from puzzle.hardware.estimate import estimate


def test_the_papers_models_on_its_hardware():
    parent = estimate("llama-3.1-70b", "4xh100-sxm", "128/1024").best
    child = estimate("nemotron-super-49b", "h100-sxm", "128/1024").best
    assert 1.7 < child.tokens_per_s / parent.tokens_per_s < 2.5
    assert child.params == 49_867_145_216


def test_rows_rise_to_the_largest_batch_and_facts_name_the_bound():
    found = estimate("llama-3.1-8b", "a100-sxm", "1000/1000")
    batches = [row.batch for row in found.rows]
    assert batches == sorted(batches)
    assert batches[:3] == [1, 8, 64]
    facts = dict(found.facts())
    assert facts["parameters"] == "8,030,261,248"
    assert facts["bound by"] == "memory"
    assert facts["seconds from"] == "roofline"
    assert found.warnings() == []
    assert found.model.source.workload.weights == "bfloat16"  # the A100 has no float8
    assert [row for row in found.table() if "(best)" in row[0]]


def test_types_and_reserve_are_inputs():
    plain = estimate("llama-3.1-70b", "h100-sxm", "128/128")
    small = estimate("llama-3.1-70b", "h100-sxm", "128/128", dtypes="int4/float8")
    tight = estimate("llama-3.1-70b", "h100-sxm", "128/128", reserve="3 GB")
    assert small.model.cache_bytes > plain.model.cache_bytes > tight.model.cache_bytes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workload": "128"}, "workload '128' is not prompt/new tokens, like 128/1024"),
        ({"dtypes": "fp8/fp8"}, "weights of type 'fp8' are unknown; write --dtypes weights/cache"),
        ({"dtypes": "float8/int4"}, "cache of type 'int4' are unknown"),
        ({"reserve": "2 s"}, "reserve is '2 s', expected an amount of memory like 2 GB"),
        ({"reserve": "much"}, "reserve: 'much' is not a number with a unit"),
        ({"hardware": "h100"}, "hardware 'h100' is unknown; did you mean"),
        ({"hardware": "3 x h100-sxm"}, "no link between 3 of these GPUs"),
        ({"workload": "200000/10"}, "the workload needs 200010 positions"),
        ({"dtypes": "bfloat16"}, "take more GPUs, smaller weights, or shorter requests"),
    ],
)
def test_mistakes_are_sentences(changes, sentence):
    asked = {"hardware": "h100-sxm", "workload": "128/128", **changes}
    with pytest.raises(PuzzleError) as error:
        estimate("llama-3.1-70b", **asked)
    assert sentence in str(error.value)
