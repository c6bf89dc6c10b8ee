import ctypes
import os
import shutil
import subprocess
import threading
import time

import pytest
import torch

from igpt import cpp
from igpt.model import native
from igpt.model.decoder import GraphDecoder, NativeDecoder, PlainDecoder, open_decoder
from tests.networks import network

needs_compiler = pytest.mark.skipif(native.library("decode") is None, reason="no C++ compiler")
DECODERS = [PlainDecoder, GraphDecoder, pytest.param(NativeDecoder, marks=needs_compiler)]
# Heads of width 12, 9, 10, 40 and 64: no perfect squares, odd ones, several lanes.
SHAPES = [
    {"n_head": 1, "n_embd": 12},
    {"n_head": 3, "n_embd": 27, "n_layer": 3, "seq_len": 25},
    {"n_head": 3, "n_embd": 30, "n_colors": 70},
    {"n_head": 2, "n_embd": 80, "seq_len": 100, "bias": True},
    {"n_head": 1, "n_embd": 64, "seq_len": 150, "n_colors": 512},  # two buckets of a graph
]


def logits_of(decoder, tokens, given):
    """Logits of the tokens from `given` on, (B, T - given, K), one by one."""
    logits = [decoder.start(tokens[:, :given])]
    logits += [decoder.step(tokens[:, t]) for t in range(given, tokens.shape[1] - 1)]
    return torch.stack(logits, 1)


def case(shape, n=5):
    model = network(**shape)
    generator = torch.Generator().manual_seed(1)
    return model, torch.randint(0, model.n_colors, (n, model.seq_len), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given", [0, 1, 13])
def test_cached_logits_equal_uncached(decoder, shape, given):
    model, tokens = case(shape)
    expected = model(tokens)
    assert expected.std() >= 1
    found = logits_of(decoder(model), tokens, given)
    torch.testing.assert_close(found, expected[:, given:], atol=1e-4, rtol=0)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [0, 13])
@pytest.mark.parametrize("n_embd", [64, 80])  # of whole tiles, and not
def test_the_native_decoder_gives_the_same_bits_at_any_batch_size(dtype, given, n_embd):
    model, tokens = case({"n_head": 2, "n_embd": n_embd, "n_colors": 70, "seq_len": 100}, n=23)
    tokens[:, :5] = tokens[:1, :5]
    together = logits_of(NativeDecoder(model, dtype=dtype), tokens, given)
    for rows in (slice(0, 1), slice(22, 23), slice(3, 9), slice(4, 21)):
        alone = logits_of(NativeDecoder(model, dtype=dtype), tokens[rows], given)
        assert torch.equal(alone, together[rows])


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [62, 63, 64, 70, 127, 130])  # with `sos`: around whole panels
def test_sequences_that_begin_alike_read_one_cache_and_give_their_own_bits(dtype, given):
    model, tokens = case({"n_head": 2, "n_embd": 64, "n_colors": 70, "seq_len": 150}, n=6)
    begun = torch.tensor([0, 1, 0, 0, 1, 5])
    tokens[:, :given] = tokens[begun, :given]
    decoder = NativeDecoder(model, dtype=dtype)
    together = logits_of(decoder, tokens, given)
    alone = [logits_of(NativeDecoder(model, dtype=dtype), row[None], given) for row in tokens]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(decoder.owners, begun)
    # A decoder of the same batch size begins anew: nobody reads what others left.
    tokens[:, :given] = tokens.flip(0)[:, :given]
    again = NativeDecoder(model, dtype=dtype)
    assert torch.equal(logits_of(decoder, tokens, given), logits_of(again, tokens, given))


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 16, 25, 32])  # rows in every part of a panel
def test_products_of_any_number_of_rows_equal_those_in_float64(n):
    model, tokens = case({"n_head": 2, "n_embd": 128, "seq_len": 10, "n_colors": 128}, n=n)
    expected = model.double()(tokens)
    assert expected.std() >= 1
    found = logits_of(NativeDecoder(model.float()), tokens, 3)
    torch.testing.assert_close(found.double(), expected[:, 3:], atol=1e-4, rtol=0)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_embd", [64, 80])  # of whole tiles, and not
@pytest.mark.parametrize("given", [0, 13])
def test_the_native_decoder_gives_the_same_bits_with_any_number_of_threads(dtype, n_embd, given):
    model, tokens = case({"n_head": 2, "n_embd": n_embd, "seq_len": 30})
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(logits_of(NativeDecoder(model, dtype=dtype), tokens, given))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_given_beginning_leaves_the_same_bits_as_its_tokens_one_by_one(dtype):
    model, tokens = case({"n_head": 2, "n_embd": 64, "seq_len": 150})
    at_once = logits_of(NativeDecoder(model, dtype=dtype), tokens, 100)
    one_by_one = logits_of(NativeDecoder(model, dtype=dtype), tokens, 0)
    assert torch.equal(at_once, one_by_one[:, 100:])


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_bfloat16_stays_near_float32(decoder):
    model, tokens = case({"n_head": 2, "n_embd": 80, "seq_len": 100, "bias": True})
    found = logits_of(decoder(model, dtype=torch.bfloat16), tokens, 0)
    expected = model(tokens)
    assert (found - expected).square().mean().sqrt() < 0.03 * expected.std()


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_can_begin_anew_with_another_batch(decoder):
    model, tokens = case({"n_embd": 12})
    used = decoder(model)
    logits_of(used, tokens, 0)
    torch.testing.assert_close(
        logits_of(used, tokens[:2], 3), logits_of(decoder(model), tokens[:2], 3)
    )


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [0, 7, 70])
def test_what_memory_held_before_is_never_read(dtype, given):
    model, tokens = case({"n_head": 3, "n_embd": 30, "seq_len": 100})
    used = NativeDecoder(model, dtype=dtype)
    expected = logits_of(used, tokens, given)
    used.keys.fill_(torch.nan)
    used.values.fill_(torch.nan)
    assert torch.equal(logits_of(used, tokens, given), expected)


def test_without_a_compiler_the_plain_decoder_is_used(monkeypatch):
    monkeypatch.setattr(native, "library", lambda name: None)
    assert isinstance(open_decoder(network()), PlainDecoder)


@needs_compiler
def test_heads_of_odd_width_are_decoded_in_float32():
    assert open_decoder(network(n_head=1, n_embd=9), precision="bf16").dtype == torch.float32
    assert open_decoder(network(), precision="bf16").dtype == torch.bfloat16
    assert open_decoder(network(), precision="fp32").dtype == torch.float32


@needs_compiler
@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_processors_without_wide_registers_give_the_same_logits(march, tmp_path, monkeypatch):
    part = native.PARTS["decode"]
    flags = [f"-march={march}" if "march" in flag else flag for flag in part.flags]
    path = tmp_path / "decode.so"
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    command = [compiler, *flags, *cpp.SHARED, "-o", str(path), *map(str, part.sources)]
    if subprocess.run(command, check=False).returncode != 0:
        pytest.skip("another kind of processor")
    monkeypatch.setattr(native, "library", lambda name: native.typed(name, ctypes.CDLL(str(path))))
    model, tokens = case({"n_head": 2, "n_embd": 80, "seq_len": 100, "bias": True})
    found = logits_of(NativeDecoder(model), tokens, 3)
    torch.testing.assert_close(found, model(tokens)[:, 3:], atol=1e-4, rtol=0)
    rounded = logits_of(NativeDecoder(model, dtype=torch.bfloat16), tokens, 3)
    assert (rounded - found).square().mean().sqrt() < 0.03 * found.std()


@needs_compiler
@torch.no_grad()
def test_products_of_pytorch_are_the_same_between_steps():
    model, tokens = case({"n_head": 2, "n_embd": 64})
    a, b = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = a @ b  # on some processors this leaves its matrix unit set up
    decoder = NativeDecoder(model, dtype=torch.bfloat16)
    decoder.start(tokens[:, :3])
    assert torch.equal(a @ b, expected)
    decoder.step(tokens[:, 3])
    assert torch.equal(a @ b, expected)


@needs_compiler
@torch.no_grad()
def test_a_forked_process_decodes_with_threads_of_its_own():
    model, tokens = case({"n_head": 2, "n_embd": 64})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        decoder = NativeDecoder(model)
        expected = logits_of(decoder, tokens[:, :3], 0)[:, 2]
        decoder.start(tokens[:, :0])
        decoder.step(tokens[:, 0])
        child = os.fork()
        if child == 0:  # PyTorch's own threads would hang here
            os._exit(0 if torch.equal(decoder.step(tokens[:, 1]), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_equal_plain_ones_on_a_gpu(dtype):
    model, tokens = case({"n_head": 2, "n_embd": 80, "seq_len": 300}, n=3)
    model, tokens = model.cuda(), tokens.cuda()
    found = logits_of(GraphDecoder(model, dtype=dtype), tokens, 5)
    expected = logits_of(PlainDecoder(model, dtype=dtype), tokens, 5)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_a_part_that_was_never_tried_is_built_ahead_by_another_process(tmp_path, monkeypatch):
    shim = tmp_path / "g++"
    shim.write_text("#!/bin/sh\necho error: none today; exit 1\n")
    shim.chmod(0o755)
    monkeypatch.setenv("CXX", str(shim))
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    part = native.PARTS["decode"]
    native.build_ahead("decode")
    end_s = time.monotonic() + 60
    while cpp.status(part).state == "untried" and time.monotonic() < end_s:
        time.sleep(0.05)
    assert cpp.status(part).state == "failed" and "none today" in cpp.status(part).reason
    threads = threading.active_count()
    native.build_ahead("decode")  # it was tried
    assert threading.active_count() <= threads
