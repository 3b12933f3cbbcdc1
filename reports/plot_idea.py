"""Draw docs/idea.png: on a toy problem in the plane, one radius for all examples against each example's own margin.

python reports/plot_idea.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Circle
from sklearn.datasets import make_moons
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anpgd import AnPgd, Search
from errors import exits_on_user_error
from flags import Parser
from losses import cross_entropy, soft_logit_margin
from pgd import InnerPgd

FIXED_EPS = 0.1


def toy() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Two moons inside [0, 1]^2, and a small network trained on them."""
    points, labels = make_moons(200, noise=0.08, random_state=0)
    x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)
    x = 0.1 + 0.8 * (x - x.amin(0)) / (x.amax(0) - x.amin(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    return model, x, y


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write. Returns the exit status."""
    Parser(description="Draw docs/idea.png.", allow_abbrev=False).parse(argv)
    model, x, y = toy()
    shown = torch.arange(0, 200, 13)
    search = AnPgd(InnerPgd("L2", 40, soft_logit_margin), Search(soft_logit_margin, 0.4, 12))
    margins = search(model, x[shown], y[shown], 0.15)
    side = torch.linspace(0, 1, 300)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        score = (model(grid)[:, 1] - model(grid)[:, 0]).reshape(300, 300)
    titles = (
        f"Adversarial training at a fixed radius ({FIXED_EPS}):\ntoo much for some examples, too little for others",
        "MMA: each example at its own margin,\nfound by PGD and a bisection",
    )
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    for panel, title, radii in zip(panels, titles, (torch.full_like(margins.eps, FIXED_EPS), margins.eps), strict=True):
        panel.contourf(side, side, score > 0, levels=[-0.5, 0.5, 1.5], colors=["0.93", "0.8"])
        panel.contour(side, side, score, levels=[0], colors="black", linewidths=2)
        for label, marker, colour in ((0, "o", "white"), (1, "^", "0.25")):
            look = {"marker": marker, "facecolor": colour, "edgecolor": "black"}
            panel.scatter(*x[y == label].T, s=9, linewidth=0.4, alpha=0.5, **look)
            panel.scatter(*x[shown][y[shown] == label].T, s=26, zorder=3, **look)
        for point, radius in zip(x[shown], radii, strict=True):
            panel.add_patch(Circle(point, radius, fill=False, color="0.1", linewidth=0.8, linestyle="--"))
        if radii is margins.eps:
            panel.plot(*torch.stack([x[shown], margins.x_adv], dim=2).permute(1, 2, 0), color="0.1", linewidth=0.8)
            panel.scatter(*margins.x_adv.T, marker="x", s=18, color="0.1", linewidth=1, zorder=3)
        panel.set(title=title, xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    figure.savefig(ROOT / "docs" / "idea.png", dpi=110)
    print(ROOT / "docs" / "idea.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
