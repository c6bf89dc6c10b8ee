"""Device and number type are decided by what a machine has, tried on pretended devices."""

import pytest
import torch

from igpt import compute, system
from igpt.errors import UserError

CPU, MPS, XPU = torch.device("cpu"), torch.device("mps"), torch.device("xpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def having(monkeypatch):
    """Pretend that this machine has a kind of device."""

    def have(*kinds, bf16=True, n=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in kinds)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        for module in (torch.cuda, torch.xpu):
            monkeypatch.setattr(module, "is_bf16_supported", lambda including_emulation: bf16)

    compute.multiplies_bfloat16.cache_clear()
    have()
    yield have
    compute.use_device(None)
    compute.multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ((), CPU),
        (("mps",), MPS),
        (("xpu",), XPU),
        (("cuda",), CUDA),
        (("cuda", "mps", "xpu"), CUDA),
    ],
)
def test_the_first_accelerator_is_taken_else_the_cpu(having, kinds, found):
    having(*kinds)
    assert compute.default_device() == found
    compute.use_device("cpu")
    assert compute.default_device() == CPU
    compute.use_device(None)
    assert compute.default_device() == found


def test_a_device_is_chosen_by_name(having):
    having("cuda", "mps", n=2)
    for name, found in (("cuda", CUDA), ("cuda:1", torch.device("cuda", 1)), ("mps", MPS)):
        compute.use_device(name)
        assert compute.default_device() == found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tpu9", "no device of PyTorch's: here are cuda, cpu"),
        ("", "no device of PyTorch's"),
        ("mps", "is not there: here are cuda, cpu"),
        ("meta", "is not there"),
        ("cuda:2", "cuda has 2 device"),
        ("cpu:1", "cpu has 1 device"),
    ],
)
def test_devices_that_are_not_there_are_refused(having, name, words):
    having("cuda", n=2)
    with pytest.raises(UserError, match=words):
        compute.use_device(name)
    assert compute.default_device() == CUDA  # as before


@pytest.mark.parametrize(
    ("device", "flags", "bf16", "found"),
    [
        (CPU, {"avx2"}, True, "fp32"),
        (CPU, {"avx512_bf16"}, True, "bf16"),
        (CPU, {"amx_bf16"}, True, "bf16"),
        (CPU, {"asimd", "bf16"}, True, "bf16"),  # ARM
        (CPU, set(), True, "fp32"),  # a system that does not say
        (CUDA, set(), True, "bf16"),
        (CUDA, set(), False, "fp32"),  # V100, T4
        (XPU, set(), True, "bf16"),
        (XPU, set(), False, "fp32"),
        (MPS, {"bf16"}, True, "fp32"),
    ],
)
def test_auto_is_decided_by_what_the_device_can_do(having, monkeypatch, device, flags, bf16, found):
    having(device.type, bf16=bf16)
    monkeypatch.setattr(system, "cpu_flags", lambda: frozenset(flags))
    assert compute.name_of(compute.choose_dtype("auto", device)) == found
    assert compute.choose_dtype("fp32", device) == torch.float32
    assert compute.choose_dtype("bf16", device) == torch.bfloat16


def test_nothing_is_compiled_for_apples_gpus():
    assert "Apple" in compute.compile_problem(MPS)
    assert compute.compile_problem(CUDA) is None
    assert compute.compile_problem(XPU) is None


def test_what_needs_float64_runs_beside_a_device_without_it():
    assert [compute.for_float64(device) for device in (MPS, CPU, CUDA)] == [CPU, CPU, CUDA]
    types = [compute.sums_dtype(device) for device in (MPS, CPU, CUDA, XPU)]
    assert types == [torch.float32, torch.float64, torch.float64, torch.float64]


def test_every_accelerator_takes_the_sizes_of_one():
    sizes = {"cpu": 1, "cuda": 2}
    assert [compute.batch_of(sizes, d) for d in (CPU, CUDA, MPS, XPU)] == [1, 2, 2, 2]


def test_memory_of_apples_gpus_is_the_machines_up_to_their_limit(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 30)
    monkeypatch.setattr(system, "free_memory_bytes", lambda: 500)
    assert compute.free_memory_bytes(MPS) == 70
    monkeypatch.setattr(system, "free_memory_bytes", lambda: 50)
    assert compute.free_memory_bytes(MPS) == 50
    assert compute.peak_memory_bytes(MPS) == 30


def test_growth_on_apples_gpus_is_that_of_their_driver(monkeypatch):
    held = [30]
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: held[0])
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    assert compute.memory_growth(lambda: held.__setitem__(0, 90), MPS) == 60


@pytest.mark.parametrize(("given", "n"), [("", 3), ("abc", 3), ("0", 3), ("-1", 3), ("2", None)])
def test_every_core_is_used_unless_openmp_is_given_a_number(monkeypatch, given, n):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(system, "cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    compute.set_threads()
    assert told == ([] if n is None else [n])
