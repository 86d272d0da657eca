"""Attention statistics the way the reference takes them: from eager attention's probabilities, in torch.

    torch_eager.py TOKENS HEAD_DIM THREADS

Prints the milliseconds of the best of five rounds, without the reference's walk over query-key pairs in Python.
"""

import sys
import time

import torch

tokens, head_dim, threads = (int(argument) for argument in sys.argv[1:4])
if threads > 0:
    torch.set_num_threads(threads)
torch.manual_seed(1)
queries, keys = torch.randn(tokens, head_dim), torch.randn(tokens, head_dim)


def statistics():
    """Entropy, maximum, sinks, local share, divergence from uniform and 64 distances of one causal head."""
    scores = queries @ keys.T * head_dim**-0.5
    scores.masked_fill_(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), float("-inf"))
    p = scores.softmax(-1)
    entropy = -(p * (p + 1e-10).log()).sum(-1).mean()
    distances = [p.diagonal(-d).sum() / tokens for d in range(64)]
    local = sum(p.diagonal(-d).sum() for d in range(9)) / tokens
    uniform = 1 / torch.arange(1, tokens + 1).unsqueeze(1)
    divergence = (p * ((p + 1e-10) / (uniform + 1e-10)).log()).sum(-1)[1:].mean()
    recent = p[:, int(tokens * 0.9) :].sum(-1).mean()
    return entropy, p.max(-1).values.mean(), p[:, :4].sum(-1).mean(), local, divergence, recent, distances


best = float("inf")
with torch.no_grad():
    for _ in range(5):
        start = time.perf_counter()
        statistics()
        best = min(best, time.perf_counter() - start)
print(best * 1e3)
