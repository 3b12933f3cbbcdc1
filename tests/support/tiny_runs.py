"""Small networks, data sets and trainers."""

import copy
import random
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from config import PRESETS, method_of
from loading.batches import Batch, Split
from loading.datasets import Dataset
from objectives import AttackStart, objective_of
from processes.replica import Replica
from trainer import Trainer


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(batchnorm=True, sharpness=6.0):
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(6)] if batchnorm else []
    model = nn.Sequential(nn.Conv2d(1, 6, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).double()
    with torch.no_grad():
        model[-1].weight.mul_(sharpness)
    return model


def batch_for(model, count=12, wrong_every=4):
    """Labels the network agrees with, but for each `wrong_every`-th."""
    x = rand(count, 1, 8, 8, seed=1)
    y = copy.deepcopy(model).train()(x).argmax(1)
    if wrong_every:
        y[::wrong_every] = (y[::wrong_every] + 1) % 4
    return Batch(x, y, torch.arange(count))


def settings(norm, alpha, **changes):
    small = {"Linf": {"attack_mineps": 0.01, "hinge_maxeps": 0.03}, "L2": {"attack_mineps": 0.1, "hinge_maxeps": 0.25}}
    named = {"clean_loss_coeff": alpha, "method": method_of(alpha), "nb_iter": 5, **small[norm], **changes}
    return replace(PRESETS["digits", norm], **named)


def tiny_data(count=23, classes=4):
    def split(n, seed):
        images = (255 * rand(n, 1, 8, 8, seed=seed)).to(torch.uint8)
        return Split(images, images.flatten(1).float().mean(1).argsort().argsort() % classes, torch.arange(n))

    return Dataset(split(count, 1), split(9, 2), split(5, 3), classes)


class Memory:
    """A recorder that keeps everything."""

    def __init__(self):
        self.lines, self.states, self.bests, self.radii, self.steps = [], [], [], [], 0

    def step(self):
        self.steps += 1

    def rows(self, rows):
        self.lines += rows

    def best(self, model, metrics):
        self.bests.append((metrics["val"]["step"], metrics))

    def margins(self, eps, step):
        self.radii.append((step, eps.clone()))

    def save(self, state):
        self.states.append(copy.deepcopy(state))


class Drawing(nn.Module):
    """Draws from NumPy and from Python, as augmentations in a network may."""

    def forward(self, x):
        return x * (1 + 0.1 * np.random.rand() + 0.1 * random.random()) if self.training else x


class Sometimes(nn.Sequential):
    """Not finite where the first pixel is bright, in train mode."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))

    def forward(self, x):
        out = super().forward(x)
        return torch.where(x[:, :1, 0, 0] > 0.8, torch.nan, out) if self.training else out


def tiny_trainer(max_steps=10, model=None, **changes):
    torch.manual_seed(0)
    model = model or nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), Drawing(), nn.Flatten(), nn.Linear(144, 4)
    )
    small = {"batch_size": 6, "max_steps": max_steps, "disp_interval": 3, "lr": ((0, 0.01), (5, 0.002))}
    config = settings("Linf", changes.pop("clean_loss_coeff", 1 / 3), **small)
    return Trainer(replace(config, **changes), model, tiny_data())


def step(model, x, y, eps, noise, config, every_row=False, odi_weights=None):
    """One step of the config's objective: its gradient is left in the parameters."""
    objective = objective_of(config, every_row=every_row)
    return objective(Replica(model), x, y, AttackStart(eps, noise, odi_weights=odi_weights), len(x))


def attacked(model, x, eps, noise, norm, loss_at, steps=5):
    """PGD written out for one batch: every image maximises its `loss_at`, steps of 2.5 eps / N in eval mode."""
    frozen = copy.deepcopy(model).eval()
    flat = (-1, 1, 1, 1)

    def into_ball(d):
        if norm == "Linf":
            return d.clamp(-eps, eps)
        return d * (eps / d.flatten(1).norm(dim=1).clamp(min=1e-300)).clamp(max=1).view(flat)

    start = x + (2 * noise - 1) * eps if norm == "Linf" else x + into_ball(noise - x)
    adv = start.clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_at(frozen, adv).sum(), adv)
        g = g.sign() if norm == "Linf" else g / g.flatten(1).norm(dim=1).clamp(min=1e-6).view(flat)
        moved = (adv + 2.5 * eps / steps * g).detach()
        adv = (x + into_ball(moved - x)).clamp(0, 1) if norm == "Linf" else x + into_ball(moved.clamp(0, 1) - x)
    return adv.detach()
