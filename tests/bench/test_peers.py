import pytest
import torch

from igpt.bench.peers import NAMES, open_peer
from igpt.bench.train import Size, lively_network, our_step, peer_step

SIZE = Size(16, 24, 2, 3, 2)
CPU = torch.device("cpu")


@pytest.fixture
def network():
    return lively_network(SIZE, CPU)


def tokens_of(network):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(network.n_colors, (2, 16), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sketch", pytest.param("transformers", marks=pytest.mark.oracle)])
def test_peers_of_our_architecture_give_our_logits(name, network):
    tokens = tokens_of(network)
    expected = network(tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(open_peer(name, network).logits(tokens), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_mingpt_sees_only_the_past(network):
    peer = open_peer("mingpt", network)
    tokens = tokens_of(network)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % network.n_colors
    before, after = peer.logits(tokens), peer.logits(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("name", NAMES)
def test_peers_draw_as_many_tokens_as_asked(name, network):
    torch.manual_seed(0)
    drawn = open_peer(name, network).generate(3, 5)
    assert drawn.shape == (3, 5)
    assert int(drawn.min()) >= 0 and int(drawn.max()) <= network.n_colors


@torch.no_grad()
def test_the_sketchs_cache_gives_the_logits_of_the_whole(network, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "igpt.bench.peers._draw",
        lambda logits: seen.append(logits) or logits.argmax(-1, keepdim=True),
    )
    peer = open_peer("sketch", network)
    drawn = peer.generate(2, 16)
    torch.testing.assert_close(torch.stack(seen, 1), peer.logits(drawn), atol=1e-4, rtol=0)


def test_a_step_of_ours_and_of_a_peer_change_the_loss_alike(network, monkeypatch):
    monkeypatch.setattr("igpt.bench.train.can_compile", lambda device: False)
    tokens = tokens_of(network)
    works = [our_step(network, tokens, torch.float32)]
    works += [peer_step(open_peer("sketch", network), tokens, torch.float32)]
    losses = [[work() for _ in range(3)] for work in works]
    assert losses[0][2] < losses[0][0] and losses[1][2] < losses[1][0]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
