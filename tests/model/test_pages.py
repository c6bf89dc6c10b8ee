import re
from pathlib import Path

import pytest
import torch

from igpt.model import native
from igpt.model.decoder import LARGE_PAGE, NativeDecoder, large_memory
from tests.networks import network


def large_bytes(memory):
    """How much of the mapping that holds `memory` the kernel counts as lying in large pages."""
    address, inside = memory.data_ptr() + memory.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages"):
            return int(line.split()[1]) * 1024
    return 0


needs_large_pages = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists() or not large_bytes(large_memory(4 * LARGE_PAGE).zero_()),
    reason="this kernel gives no large pages to anyone",
)


@needs_large_pages
def test_all_but_the_last_page_is_large():
    memory = large_memory(5 * LARGE_PAGE + 3).zero_()
    assert large_bytes(memory) >= 5 * LARGE_PAGE
    assert memory.data_ptr() % LARGE_PAGE == 0


@needs_large_pages
@pytest.mark.skipif(native.library("decode") is None, reason="no C++ compiler")
@torch.no_grad()
def test_the_decoder_reads_weights_and_cache_from_large_pages():
    decoder = NativeDecoder(network(n_head=4, n_embd=256, n_layer=4, seq_len=600))
    decoder.start(torch.zeros(4, 500, dtype=torch.int64))
    assert large_bytes(decoder.weights) >= decoder.weights.nbytes // LARGE_PAGE * LARGE_PAGE
    assert large_bytes(decoder.keys) >= decoder.keys.nbytes // 2  # of what is filled


def test_memory_without_large_pages_is_ordinary(monkeypatch):
    monkeypatch.delattr("mmap.MADV_HUGEPAGE", raising=False)
    memory = large_memory(3 * LARGE_PAGE)
    memory.fill_(7)
    assert memory.sum() == 21 * LARGE_PAGE
    assert large_memory(10).shape == (10,)
