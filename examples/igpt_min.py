"""Generative pre-training from pixels in one file: palette, network, training, samples, probe.

    python examples/igpt_min.py CIFAR_FOLDER     # the official cifar-10-batches-bin, unpacked
    python examples/igpt_min.py PHOTOS           # or a folder with one sub-folder a class

Needs torch, numpy and Pillow. Read it from top to bottom beside the paper (Chen et al., ICML 2020),
whose section numbers it gives. The package `igpt` computes the same losses and samples, faster.

What is unusual beside a language model: a token is a colour, one of K that k-means found; there are
no words to cut up, so an image of S x S pixels is always T = S * S tokens, row by row. The features
of a picture come from the *middle* of the network. Shapes: N images, B batch, T tokens, D width,
H heads, E = D / H, K colours, L layers.
"""

import argparse
import hashlib
import math
from math import isqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn


# Random numbers: every draw has a name, so that no draw depends on those before it.
def key_of(seed, name, step=0, slot=0):
    """A 128-bit key of four values, the same on every machine."""
    text = f"{seed}/{name}/{step}/{slot}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def stream(seed, name, step=0, slot=0):
    """The generator of one draw."""
    return np.random.Generator(np.random.Philox(key=key_of(seed, name, step, slot)))


# Images (§3.1): (N, S, S, 3) uint8 and a class each.
def read_cifar(folder):
    """The 50,000 + 10,000 images of CIFAR-10: records of a label and 3 planes of 32 x 32."""

    def read(pattern):
        data = b"".join(path.read_bytes() for path in sorted(folder.glob(pattern)))
        records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, 0].astype(np.int64)

    return read("data_batch_*.bin"), read("test_batch.bin")


def read_folder(folder, size):
    """The pictures below one sub-folder a class; every fifth one tests."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, path in enumerate(classes):
        for file in sorted(path.iterdir()):
            images.append(np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (size, size))))
            labels.append(label)
    images, labels = np.stack(images), np.array(labels)
    tests = np.arange(len(images)) % 5 == 4
    return (images[~tests], labels[~tests]), (images[tests], labels[tests])


def shrink(images, size):
    """Means of whole blocks of pixels: 32 x 32 to 16 x 16 or 8 x 8."""
    n, side = len(images), images.shape[1]
    blocks = images.reshape(n, size, side // size, size, side // size, 3)
    return np.rint(blocks.mean((2, 4))).astype(np.uint8)


# Colours (§3.2): 512 of them stand for 16.7 million, so a pixel is one token, not three.
def fit_palette(images, n_colors, seed=0, rounds=20):
    """(K, 3) in [-1, 1]: the k-means centres of all pixels, by Lloyd's algorithm."""
    pixels = torch.from_numpy(images.reshape(-1, 3)).float() / 127.5 - 1
    points, counts = pixels.unique(dim=0, return_counts=True)
    if len(points) <= n_colors:
        return points.numpy()
    weights, share = counts.double(), (counts / counts.sum().double()).numpy()
    chosen = stream(seed, "palette-min").choice(len(points), n_colors, replace=False, p=share)
    centers = points[torch.from_numpy(chosen)].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centers).argmin(1) for part in points.split(8192)])
        sums = torch.zeros(n_colors, 3, dtype=torch.double)
        sums.index_add_(0, nearest, points.double() * weights[:, None])
        held = torch.zeros(n_colors, dtype=torch.double).index_add_(0, nearest, weights)
        alive = held > 0
        centers[alive] = (sums / held[:, None])[alive].float()
    return centers.numpy()


def encode(images, palette):
    """(N, S, S, 3) uint8 -> (N, T) int64: the index of each pixel's nearest colour."""
    n, side = images.shape[:2]
    colors = torch.from_numpy(palette).double()
    codes = torch.from_numpy(images.reshape(-1, 3) @ np.array([65536, 256, 1]))
    distinct, place = codes.unique(return_inverse=True)  # many pixels share a colour
    rgb = torch.stack([distinct >> shift & 255 for shift in (16, 8, 0)], 1).double() / 127.5 - 1
    nearest = [(p[:, None] - colors).square().sum(-1).argmin(1) for p in rgb.split(8192)]
    return torch.cat(nearest)[place].view(n, side * side)


def decode(tokens, palette):
    """(N, T) -> (N, S, S, 3) uint8."""
    side = isqrt(tokens.shape[1])
    return np.rint(127.5 * (palette[tokens] + 1)).astype(np.uint8).reshape(-1, side, side, 3)


# The network (§2.2, §3.3): GPT-2 but for the norm, the missing biases and the `sos` vector.
class Attention(nn.Module):
    def __init__(self, width, n_head):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, D // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, E)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))  # the released approximation of GELU


class Block(nn.Module):
    def __init__(self, width, n_head):
        super().__init__()
        self.ln_1 = nn.RMSNorm(width, eps=1e-5)  # divides by the root mean square, no centring
        self.attn = Attention(width, n_head)
        self.ln_2 = nn.RMSNorm(width, eps=1e-5)
        self.mlp = MLP(width)

    def forward(self, h):
        h = h + self.attn(self.ln_1(h))
        return h + self.mlp(self.ln_2(h))


class GPT(nn.Module):
    def __init__(self, *, n_layer, n_head, width, n_colors, seq_len):
        super().__init__()
        self.wte = nn.Embedding(n_colors, width)
        self.wpe = nn.Embedding(seq_len, width)
        self.sos = nn.Parameter(torch.empty(width))  # stands before the first pixel
        self.h = nn.ModuleList(Block(width, n_head) for _ in range(n_layer))
        self.ln_f = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, n_colors, bias=False)  # not tied to `wte`

    @torch.no_grad()
    def init_weights(self, seed):
        """The released code's initial values, drawn in the order of the parameters."""
        generator = torch.Generator().manual_seed(key_of(seed, "init") >> 65)
        width, n_layer = self.wte.embedding_dim, len(self.h)
        for name, parameter in self.named_parameters():
            if name == "head.weight":
                parameter.zero_()  # so that the first loss is exactly ln K
            elif "ln_" in name:
                parameter.fill_(1.0)
            else:
                special = {
                    "wpe.weight": 0.01,
                    "attn.c_attn.weight": 1 / math.sqrt(width),
                    "attn.c_proj.weight": 1 / math.sqrt(width * n_layer),
                }
                std = next((s for end, s in special.items() if name.endswith(end)), 0.02)
                parameter.normal_(0.0, std, generator=generator)

    def hidden(self, tokens):
        """(B, n) tokens -> n + 1 slots; yields h^0 .. h^L, each (B, n + 1, D).

        Slot t has seen the tokens before t only: `sos` first shifts everything to the right.
        """
        first = self.sos.expand(len(tokens), 1, -1)
        x = torch.cat([first, self.wte(tokens)], 1)
        h = x + self.wpe.weight[: x.shape[1]]
        yield h
        for block in self.h:
            h = block(h)
            yield h

    def forward(self, tokens):
        """(B, n) -> logits of tokens 0 .. n: (B, n + 1, K)."""
        *_, h = self.hidden(tokens)
        return self.head(self.ln_f(h))


# Training (§3.4): predict every pixel from those before it.
def shuffled(places, n, seed, epoch):
    """The images at these places of an epoch's order, without holding the order (Feistel)."""
    side = isqrt(n - 1) + 1
    a, b = np.uint64(side), np.uint64(-(-n // side))
    keys = stream(seed, "order/train", epoch).integers(0, 2**64, (4, 2), np.uint64)

    def hashed(values, key, below):
        mixed = (values + key) * np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
        mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(32)) * below >> np.uint64(32)

    def permuted(values):
        left, right = np.divmod(values, b)
        for left_key, right_key in keys:
            left = (left + hashed(right, left_key, a)) % a
            right = (right + hashed(left, right_key, b)) % b
        return left * b + right

    images = permuted(places.astype(np.uint64))
    while (outside := np.flatnonzero(images >= n)).size:
        images[outside] = permuted(images[outside])
    return images.astype(np.int64)


def batch_at(tokens, step, batch_size, seed):
    """(B, T): the batch of a step is a function of (seed, step); each epoch has each image once."""
    turns = step * batch_size + np.arange(batch_size)
    epochs, places = np.divmod(turns, len(tokens))
    ids = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        ids[now] = shuffled(places[now], len(tokens), seed, int(epoch))
    return tokens[torch.from_numpy(ids)]


def lr_at(step, peak, warmup, total):
    """Linear warm-up, then a cosine to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(network, tokens, *, steps, batch_size, lr, seed, warmup=None, clip=1.0, log=print):
    """Adam without decay, as the paper has it; returns each step's loss in nats a token."""
    warmup = max(1, steps // 20) if warmup is None else warmup
    weights = list(network.parameters())
    adam = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    losses = []
    for step in range(steps):
        batch = batch_at(tokens, step, batch_size, seed)
        logits = network(batch[:, :-1])  # (B, T, K); the last pixel is never an input
        # A sum divided once: the loss of a batch does not depend on how it is cut up (eq. 1).
        total = F.cross_entropy(logits.flatten(0, 1), batch.flatten(), reduction="sum")
        (total / batch.numel()).backward()
        nn.utils.clip_grad_norm_(weights, clip)
        adam.param_groups[0]["lr"] = lr_at(step, lr, warmup, steps)
        adam.step()
        adam.zero_grad()
        losses.append(total.item() / batch.numel())
        if step % 50 == 0 or step == steps - 1:
            log(f"step {step + 1}/{steps} loss {losses[-1]:.4f} nats a token")
    return losses


# Drawing (§3, "samples" and "completions"): one pixel after another.
@torch.no_grad()
def draw(network, given, seq_len, seed=0, name="sample"):
    """(n, T) int64: `given` (n, t) stands, the rest is drawn at temperature 1.

    All that stands goes through the network for every pixel: simple, and slow. The package keeps
    the keys and values of what it has seen.
    """
    rows = [stream(seed, name, 0, i).random(seq_len) for i in range(len(given))]
    numbers = torch.from_numpy(np.stack(rows))  # (n, T), the numbers that decide
    tokens = given
    for t in range(given.shape[1], seq_len):
        probabilities = network(tokens)[:, -1].double().softmax(-1)  # (n, K)
        cumulated = probabilities.cumsum(-1)
        level = numbers[:, t : t + 1] * cumulated[:, -1:]
        drawn = torch.searchsorted(cumulated, level, right=True)
        tokens = torch.cat([tokens, drawn.clamp(max=cumulated.shape[1] - 1)], 1)
    return tokens


# The linear probe (§2.3): what can a linear map read off the frozen features of each layer?
@torch.no_grad()
def features_of(network, tokens):
    """(L + 1, N, D): means over positions of the normalised activations of every layer (§2.4)."""
    found = []
    for batch in tokens.split(64):
        layers = list(network.hidden(batch[:, :-1]))
        norms = [*(block.ln_1 for block in network.h), network.ln_f]
        pooled = [norm(h).mean(1) for norm, h in zip(norms, layers, strict=True)]
        found.append(torch.stack(pooled))
    return torch.cat(found, 1)


def probe(train_x, train_y, test_x, test_y, strength=1e-3):
    """Accuracy of multinomial logistic regression on standardised features."""
    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    linear = nn.Linear(train_x.shape[1], int(train_y.max()) + 1)
    nn.init.zeros_(linear.weight)
    lbfgs = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        penalty = strength * linear.weight.square().sum()
        loss = F.cross_entropy(linear(train_x), train_y) + penalty
        loss.backward()
        return loss

    lbfgs.step(closure)
    return (linear(test_x).argmax(1) == test_y).float().mean().item()


# All of it.
def save_row(images, path):
    Image.fromarray(np.concatenate(list(images), 1).repeat(4, 0).repeat(4, 1)).save(path)


def main():
    parser = argparse.ArgumentParser(description="Image GPT in one file.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    if list(options.folder.glob("data_batch_*.bin")):
        sets = [(shrink(x, options.size), y) for x, y in read_cifar(options.folder)]
    else:
        sets = read_folder(options.folder, options.size)
    (images, labels), (test_images, test_labels) = sets
    palette = fit_palette(images[:5000], 512)
    tokens, test_tokens = encode(images, palette), encode(test_images[:2000], palette)
    T = tokens.shape[1]
    network = GPT(n_layer=4, n_head=4, width=128, n_colors=len(palette), seq_len=T)
    network.init_weights(seed=0)
    train(network, tokens, steps=options.steps, batch_size=16, lr=3e-3, seed=0)

    for name, given in (("samples", 0), ("completions", T // 2)):
        drawn = draw(network, test_tokens[:8, :given], T, name=name)
        save_row(decode(drawn.numpy(), palette), f"{name}.png")

    some = torch.from_numpy(stream(0, "probe-min").permutation(len(tokens))[:5000])
    y, test_y = torch.from_numpy(labels)[some], torch.from_numpy(test_labels[:2000])
    x, test_x = features_of(network, tokens[some]), features_of(network, test_tokens)
    for layer, (ours, theirs) in enumerate(zip(x, test_x, strict=True)):
        print(f"layer {layer}: {probe(ours, y, theirs, test_y):.1%} right")


if __name__ == "__main__":
    main()
