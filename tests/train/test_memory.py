import dataclasses

import pytest
import torch

from igpt import compute
from igpt.config import ModelConfig, RunConfig
from igpt.errors import UserError
from igpt.model.sizes import Shape, parameter_count
from igpt.train import memory
from tests.train.test_loop import tiny

CPU = torch.device("cpu")
SHAPE = Shape(n_colors=17, seq_len=64, objective="ar")


def fitting(config, monkeypatch, *, free_bytes, ranks=1, each=None):
    monkeypatch.setattr(compute, "free_memory_bytes", lambda device: free_bytes)
    if each is not None:
        monkeypatch.setattr(memory, "CERTAIN", 0)
        monkeypatch.setattr(memory, "image_bytes", lambda *args, **kwargs: each)
    return memory.fitting_micro_batch(config, n_colors=17, ranks=ranks)


def states(config):
    return memory.STATE_BYTES * parameter_count(config.model, SHAPE)


@pytest.mark.parametrize(("each", "expected"), [(1e6, 128), (3e6, 32), (1e7, 8), (1e9, 1)])
def test_the_largest_halving_that_fits_is_taken(monkeypatch, each, expected):
    config = tiny(batch_size=128)
    free = 2 * (1.45e8 + states(config))
    assert fitting(config, monkeypatch, free_bytes=free, each=each) == expected


def test_ranks_share_the_batch_and_fsdp_the_states_too(monkeypatch):
    config = tiny(batch_size=128, parallel="fsdp")
    assert fitting(config, monkeypatch, free_bytes=1e12, ranks=4) == 32
    large = dataclasses.replace(config, model=ModelConfig(n_layer=60, n_head=48, n_embd=3072))
    one = fitting(large, monkeypatch, free_bytes=1.3e11, each=1e9)
    eight = fitting(large, monkeypatch, free_bytes=1.3e11, each=1e9, ranks=8)
    assert one == 1
    assert eight == 16


def test_where_the_formula_leaves_no_doubt_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(memory, "image_bytes", lambda *args, **kwargs: pytest.fail("tried"))
    assert fitting(tiny(batch_size=128), monkeypatch, free_bytes=1e12) == 128


@pytest.mark.parametrize("recompute", [False, True])
def test_a_trial_of_two_blocks_tells_what_a_deeper_network_takes(recompute, monkeypatch):
    monkeypatch.setattr(memory, "CLEAR_BYTES", 2**25)
    config = dataclasses.replace(
        tiny(batch_size=64, checkpoint_activations=recompute),
        model=ModelConfig(n_layer=6, n_head=2, n_embd=64),
    )
    told = memory.image_bytes(config, SHAPE, most=64, device=CPU)
    found = memory._trial_bytes(config, SHAPE, 6, 64, CPU) / 64
    assert 0.95 * found < told < 1.1 * found


def test_tensors_are_counted_once_and_for_as_long_as_they_live():
    kept = []

    def work():
        passing = torch.ones(2**20)  # 4 MiB
        passing.view(2, -1).add_(1)
        del passing
        kept.append(torch.zeros(2**19) + 1)  # two of 2 MiB

    assert compute.memory_growth(work, CPU) == 2**22
    assert compute.memory_growth(lambda: [torch.ones(2**20) for _ in range(3)], CPU) == 3 * 2**22


@pytest.mark.parametrize(
    ("error", "train", "line"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            {"micro_batch": 6},
            "out of memory with train.micro_batch 6: try --train.micro-batch 3, "
            "or --train.checkpoint-activations, or --train.parallel fsdp under torchrun, "
            "or a smaller --data.image-size or --model",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            {"micro_batch": 1, "checkpoint_activations": True, "parallel": "fsdp"},
            "out of memory with train.micro_batch 1: try a smaller --data.image-size or --model",
        ),
    ],
)
def test_out_of_memory_says_which_setting_to_change(error, train, line):
    with pytest.raises(UserError) as refusal, memory.saying_what_to_lower(tiny(**train)):
        raise error
    assert str(refusal.value) == line


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), memory.saying_what_to_lower(RunConfig()):
        raise RuntimeError("shape mismatch")


def test_a_real_lack_of_memory_is_one_line():
    with pytest.raises(UserError, match="out of memory"), memory.saying_what_to_lower(tiny()):
        torch.empty(2**46)
