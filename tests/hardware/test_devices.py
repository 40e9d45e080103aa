"""Devices are data, and the data say what they cannot do."""

import pytest

from puzzle.errors import PuzzleError
from puzzle.hardware.devices import BYTES, device, devices


@pytest.mark.parametrize("name", devices())
def test_efficiencies_are_fractions_and_float8_is_not_slower(name):
    found = device(name)
    for fraction in (
        found.efficiency.gemm,
        found.efficiency.attention,
        found.efficiency.bandwidth,
    ):
        assert 0 < fraction < 1
    peaks = [found.peak_tflops[dtype] for dtype in BYTES if dtype in found.peak_tflops]
    assert peaks == sorted(peaks)
    assert 1e-7 < found.launch_s < 1e-4


def test_numbers_of_an_h100():
    h100 = device("h100-sxm")
    assert h100.bytes_per_s == pytest.approx(2.68e12)
    assert h100.gemm_flops_per_s("bfloat16") == pytest.approx(643e12, rel=1e-3)
    assert h100.usable_bytes == pytest.approx(0.9 * 79.65 * 2**30, abs=1)


def test_an_unknown_device_suggests_the_nearest():
    with pytest.raises(PuzzleError, match=r"hardware 'h100' is unknown; did you mean 'h100-"):
        device("h100")


def test_a_type_the_device_lacks_is_said():
    with pytest.raises(PuzzleError, match=r"does not compute in float8; .* float32, bfloat16"):
        device("a100-sxm").gemm_flops_per_s("float8")
