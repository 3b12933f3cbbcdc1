"""A two-class linear classifier, whose margins are known in closed form."""

import torch
from torch import nn

MAX_EPS, SEARCH_STEPS = 0.2, 14


class Linear(nn.Module):
    """Two-class linear classifier on inputs of any rank: logits +-(w x + b) / 2, so LM = SLM = -(2y - 1)(w x + b)."""

    def __init__(self, shape, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def score(self, x):
        return (x * self.w).flatten(1).sum(1) + self.b

    def forward(self, x):
        half = self.score(x) / 2
        return torch.stack([-half, half], dim=1)

    def margin(self, x, norm):
        dual = self.w.abs().sum() if norm == "Linf" else self.w.norm()
        return (self.score(x).abs() / dual).detach()


def problem(shape, batch, norm, seed=0):
    """Points near the middle of [0, 1], right by construction, with margins in (0.01, 0.12): clipping stays inactive."""
    model = Linear(shape, seed)
    g = torch.Generator().manual_seed(seed + 1)
    x = 0.5 + 0.02 * torch.randn(batch, *shape, generator=g, dtype=torch.float64)
    w = model.w.detach()
    dual, unit = (w.abs().sum(), w.sign()) if norm == "Linf" else (w.norm(), w / w.norm())
    wanted = (0.01 + 0.11 * torch.rand(batch, generator=g, dtype=torch.float64)) * torch.where(
        torch.rand(batch, generator=g) < 0.5, -1, 1
    )
    shift = (wanted - model.score(x).detach() / dual).reshape(-1, *[1] * len(shape))
    x = x + shift * unit
    assert (x - 0.5).abs().max() < 0.5 - MAX_EPS
    return model, x, (wanted > 0).long()


def with_corners(batch, shape, seed=1):
    """Images of which a third of the pixels is 0 and a third is 1."""
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.rand(batch, *shape, generator=g, dtype=torch.float64) - 1).clamp(0, 1)


def boxed_margin(norm, x, gradient, rise):
    """(B,): the length of the shortest d with gradient . d = rise and x + d in [0, 1], by halving its multiplier."""
    gradient, room = gradient.flatten(1), torch.where(gradient > 0, 1 - x, x).flatten(1)
    low, high = torch.zeros(len(x), 1, dtype=x.dtype), torch.full((len(x), 1), 1e6, dtype=x.dtype)
    for _ in range(100):
        middle = (low + high) / 2
        d = torch.minimum(middle * (gradient.abs() if norm == "L2" else 1), room)
        short = (gradient.abs() * d).sum(1, keepdim=True) < rise[:, None]
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return d.norm(dim=1) if norm == "L2" else d.amax(1)
