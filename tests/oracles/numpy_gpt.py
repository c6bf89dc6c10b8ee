"""The network once more, slow and plain, in float64 numpy: loops over images, heads and positions.

Written from the paper's formulas and apart from `igpt.model.gpt`, to check it against.
"""

import numpy as np

EPS = 1e-5


def rms_norm(x, gain):
    return gain * x / np.sqrt((x**2).mean() + EPS)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def linear(x, state, name):
    bias = state.get(f"{name}.bias", 0.0)
    return state[f"{name}.weight"] @ x + bias


def attention(rows, state, prefix, n_head, causal):
    """rows: list of T vectors (D,)."""
    width = len(rows[0])
    size = width // n_head
    qkv = [linear(row, state, f"{prefix}.c_attn") for row in rows]
    out = []
    for t in range(len(rows)):
        heads = []
        for head in range(n_head):
            part = slice(head * size, (head + 1) * size)
            seen = range(t + 1) if causal else range(len(rows))
            q = qkv[t][:width][part]
            scores = np.array([q @ qkv[s][width : 2 * width][part] / np.sqrt(size) for s in seen])
            weights = softmax(scores)
            heads.append(
                sum(w * qkv[s][2 * width :][part] for w, s in zip(weights, seen, strict=True))
            )
        out.append(linear(np.concatenate(heads), state, f"{prefix}.c_proj"))
    return out


def logits(state, tokens, *, n_layer, n_head, objective, masked=None):
    """(T,) tokens of one image -> (T, K) float64 logits."""
    T = len(tokens)
    if objective == "ar":
        rows = [state["sos"]] + [state["wte.weight"][t] for t in tokens[:-1]]
    else:
        hidden = masked if masked is not None else np.zeros(T, bool)
        rows = [
            state["wte.weight"][t] * (0.0 if hide else 1.0)
            for t, hide in zip(tokens, hidden, strict=True)
        ]
    h = [row + state["wpe.weight"][t] for t, row in enumerate(rows)]
    for layer in range(n_layer):
        block = f"h.{layer}"
        n = [rms_norm(row, state[f"{block}.ln_1.weight"]) for row in h]
        a = attention(n, state, f"{block}.attn", n_head, objective == "ar")
        h = [x + y for x, y in zip(h, a, strict=True)]
        for t in range(T):
            n = linear(rms_norm(h[t], state[f"{block}.ln_2.weight"]), state, f"{block}.mlp.c_fc")
            n = n / (1 + np.exp(-1.702 * n))
            h[t] = h[t] + linear(n, state, f"{block}.mlp.c_proj")
    return np.stack([state["head.weight"] @ rms_norm(row, state["ln_f.weight"]) for row in h])
