"""`puzzle profile` on a tiny model: what is planned, timed, resumed, and priced from."""

import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from puzzle.blocks.variant import Block
from puzzle.config import Space
from puzzle.errors import PuzzleError
from puzzle.export.modeling_puzzle import CACHE, layer_masks
from puzzle.export.targets import ZERO_WIDTH
from puzzle.hardware import here, measure
from puzzle.hardware.devices import device
from puzzle.hardware.estimate import estimate, workload_of
from puzzle.hardware.graphs import Replay
from puzzle.hardware.kernel_half import KernelHalf, Past
from puzzle.hardware.measure import Bench, Case, filled_cache, random_layer, random_model
from puzzle.hardware.profile import TURNS, Profile, batches_of, transformers_config
from puzzle.hardware.tables import read_table
from puzzle.modules import child_config

TINY = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
SPACE = Space(attention=("100%", "linear", "noop"), ffn=("50%", "noop"))
CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measure, "FEWEST", 2)
    monkeypatch.setattr(measure, "LEAST_S", 0.0)
    monkeypatch.setattr(measure, "ROTATED_BYTES", 2**17)
    monkeypatch.setattr(here, "SIDE", 64)
    monkeypatch.setattr(here, "COPIED_BYTES", 2**20)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture
def profile(config, tmp_path):
    return Profile(str(config), workload_of("8/4", "float32", [1, 2]), tmp_path / "t.csv", SPACE)


def test_every_half_is_timed_in_both_phases_at_every_batch(profile):
    cases = profile.cases()
    halves = {str(case.half) for case in cases}
    assert halves == {"None", "gqa2+noop", "linear+noop", "noop+ffn256"}  # as DeciLM pads both
    assert len(cases) == len(set(cases)) == 4 * 2 * (1 + 2)  # prefill at 8, decode at 9 and 12
    assert {(c.phase, c.length) for c in cases} == {("prefill", 8), ("decode", 9), ("decode", 12)}


def test_what_an_engine_gets_is_timed(config, tmp_path):
    """llama.cpp has an FFN in every layer, if one of no size to speak of."""
    space = SPACE.model_copy(update={"ffn": (*SPACE.ffn, "noop")})
    asked = workload_of("8/4", "float32", [1])
    found = Profile(str(config), asked, tmp_path / "t.csv", space, "llama.cpp").cases()
    assert f"noop+ffn{ZERO_WIDTH}" in {str(case.half) for case in found}


def test_a_table_is_written_gone_on_with_and_priced_from(profile, config):
    everything = len(profile.cases())
    plan = profile.plan()
    assert sum(count for _, count, _ in plan) == everything
    assert all(seconds > 0 for _, _, seconds in plan)
    assert profile.run() == everything
    lines = read_table(profile.table)
    assert len(lines) == everything
    assert all(line.seconds > 0 and line.kernels == "torch" for line in lines)
    profile.table.write_text("\n".join(profile.table.read_text().splitlines()[:-3]) + "\n")
    assert len(profile.missing()) == 3
    assert profile.run() == 3
    assert profile.plan() == []
    found = estimate(config, "cpu-laptop", "8/4", dtypes="float32", costs=str(profile.table))
    assert "t.csv" in found.rows[0].sources
    assert any("beyond t.csv" in warning for warning in found.warnings())  # batch 2048


def test_a_slow_minute_does_not_price_the_halves_it_met(profile, monkeypatch):
    """Steadily slow passes at the beginning; every case is met again when they are over."""
    order = []

    def time(bench, case):
        order.append(case)
        return (0.0012, 0.02) if len(order) <= 5 else (0.001, 0.02)

    monkeypatch.setattr(Bench, "time", time)
    cases = profile.cases()
    assert profile.run() == len(cases)
    assert order == cases * TURNS["cpu"]
    assert {line.seconds for line in read_table(profile.table)} == {0.001}
    profile.table.write_text("\n".join(profile.table.read_text().splitlines()[:-3]) + "\n")
    plan = profile.plan()
    assert sum(count for _, count, _ in plan) == 3
    assert len(plan) == 4  # all halves are met again beside what is new
    del order[:]
    assert profile.run() == 3
    assert order == cases[-3:] + cases * (TURNS["cpu"] - 1)


def test_unsteady_timings_are_taken_anew_and_the_fastest_stay(profile, monkeypatch):
    """A neighbour that slows every other pass of the first turns leaves no mark."""
    taken = Counter()

    def time(bench, case):
        taken[case] += 1
        disturbed = taken[case] < 5 and case.phase == "decode"
        return (0.003, 0.5) if disturbed else (0.001, 0.02)

    monkeypatch.setattr(Bench, "time", time)
    assert profile.run() == len(profile.cases())
    assert {case.phase: count for case, count in taken.items()} == {
        "prefill": TURNS["cpu"],
        "decode": 5,
    }
    assert {line.seconds for line in read_table(profile.table)} == {0.001}
    assert profile.unsteady() == []
    slower = profile.table.read_text().replace("0.001,0.02", "0.0005,0.4", 1)
    profile.table.write_text(slower)
    assert len(profile.unsteady()) == 1
    assert profile.run() == 0
    seconds = sorted(line.seconds for line in read_table(profile.table))
    assert seconds[:2] == [0.0005, 0.001]
    assert len(seconds) == len(profile.cases())
    assert profile.unsteady() == []  # steady passes have been seen since


def test_what_does_not_fit_is_left_out_and_said(profile, monkeypatch):
    def time(bench, case):
        if case.batch == 2:
            raise torch.OutOfMemoryError("Tried to allocate 9 GiB.\nDetails.")
        return 0.001, 0.02

    monkeypatch.setattr(Bench, "time", time)
    with pytest.warns(UserWarning, match="is left out") as warned:
        assert profile.run() == len(profile.cases()) / 2
    said = "prefill of outside (2 x 8, torch) is left out: Tried to allocate 9 GiB."
    assert said in {str(each.message) for each in warned}
    assert {case.batch for case in profile.missing()} == {2}


@pytest.mark.parametrize(
    ("copies", "once_s", "wanted"), [(4, 1e-4, 16), (13, 1e-4, 13), (4, 6e-3, 4), (4, 0.1, 1)]
)
def test_a_graph_holds_as_many_passes_as_it_needs(monkeypatch, copies, once_s, wanted):
    held = []
    monkeypatch.setattr(measure, "warm_s", lambda run: once_s)
    monkeypatch.setattr(
        *(measure, "captured_or_launched"),
        lambda passes: held.extend(passes) or Replay(pytest.fail, len(passes), 1),
    )
    measure._graph([*range(copies)])
    assert held == [n % copies for n in range(wanted)]


def test_types_that_torch_does_not_run_are_refused(config, tmp_path):
    asked = workload_of("8/4", "float8/float8", [1])
    with pytest.raises(PuzzleError, match="float8 with cache float8 cannot be timed"):
        Profile(str(config), asked, tmp_path / "t.csv", SPACE).run()
    with pytest.raises(PuzzleError, match="batches 'few' are not whole numbers"):
        batches_of("few")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    "half", ["gqa2+noop", "gqa1w4+noop", "noop+ffn48", "linear+noop", "noop+linear"]
)
def test_our_kernels_give_the_layers_numbers(config, half, phase):
    block = Block.parse(half)
    bench = Bench(transformers_config(str(config)), torch.float32, "cpu")
    layer = random_layer(bench.config, block, CPU)
    case = Case(block, phase, 2, 8, "triton")
    assert bench.time(case)[0] > 0
    torch.manual_seed(0)
    stream, positions = bench._stream(case)
    keys, values = bench._past(block, 2, 8)
    before = 8 - stream.shape[1]
    cos, sin = angles = bench._rotary(stream, position_ids=positions)
    cache = filled_cache(keys[:, :, :before].clone(), values[:, :, :before].clone())
    window = layer.window
    masks = layer_masks(
        child_config(bench.config, [block]),
        {window},
        inputs_embeds=stream,
        attention_mask=None,
        cache=cache,
        position_ids=positions,
    )
    expected = layer(
        stream,
        attention_mask=masks[window],
        position_ids=positions,
        position_embeddings=angles,
        use_cache=True,
        **{CACHE: cache},
    )
    found = KernelHalf(layer)(stream, Past(cos, sin, keys, values))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("half", [None, "gqa2+noop", "gqa1w4+noop", "noop+ffn48", "linear+noop"])
def test_a_case_runs_its_pass(config, half, phase):
    bench = Bench(transformers_config(str(config)), torch.float32, "cpu")
    block = None if half is None else Block.parse(half)
    seconds, spread = bench.time(Case(block, phase, 2, 8))
    assert seconds > 0
    assert spread >= 0


def test_weights_rotate_among_copies_and_are_numbers(config):
    bench = Bench(transformers_config(str(config)), torch.float32, "cpu")
    half = Block.parse("noop+ffn48")
    bench.time(Case(half, "decode", 1, 8))
    copies = bench._copies(half, lambda: pytest.fail("made again"))
    held = sum(tensor.nbytes for tensor in copies[0].state_dict().values())
    assert len(copies) == 1 + 2**17 // held
    layer = random_layer(bench.config, half, CPU)
    assert all(torch.isfinite(tensor).all() for tensor in layer.state_dict().values())


def test_a_random_model_generates(config):
    blocks = [Block.parse("noop+ffn48"), Block.parse("gqa1+noop")]
    model = random_model(transformers_config(str(config)), blocks, CPU)
    tokens = torch.ones(1, 5, dtype=torch.long)
    logits = model(tokens, logits_to_keep=1).logits
    assert logits.shape == (1, 1, 97)
    assert torch.isfinite(logits).all()


def test_the_head_is_read_once_for_all_prompts(config):
    """torch multiplies a strided [B, 1, D] as B products, each of which reads the whole weight."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            operations.append((op, [tuple(arg.shape) for arg in args if hasattr(arg, "shape")]))
            return op(*args, **(kwargs or {}))

    operations = []
    model = random_model(transformers_config(str(config)), [Block.parse("noop+ffn48")], CPU)
    with torch.no_grad(), Seen():
        model(torch.ones(3, 5, dtype=torch.long), logits_to_keep=1)
    products = [(op, shapes) for op, shapes in operations if any(97 in each for each in shapes)]
    assert torch.ops.aten.mm.default in {op for op, _ in products}
    assert torch.ops.aten.bmm.default not in {op for op, _ in products}


def test_this_processor_is_a_device_that_stays_as_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here.here.cache_clear()
    found = device("cpu-here")
    monkeypatch.setattr(here, "measured", None)
    here.here.cache_clear()
    assert device("cpu-here") == found
    assert found.bytes_per_s > 1e8
    assert found.gemm_flops_per_s("float32") > 1e8
    assert 0 < found.launch_s < 1e-2
    here.here.cache_clear()
