"""A linear network fitted to the digits by least squares, and run folders that hold one."""

import torch
from torch import nn

import evaluate_on_pgd_attacks
from config import PRESETS
from evaluations.flags import parse_pgd
from evaluations.subject import load_subject
from loading.datasets import Sizes, Source, load_dataset
from records import checkpoint
from validation import stored_config

CPU = torch.device("cpu")
ATTACK = [*("--device", "cpu", "--network", "linear_networks:Linear", "--nb_iter", "5", "--nb_restart", "2")]
SMALL = [*ATTACK, "--test_size", "40"]


class Linear(nn.Module):
    def __init__(self, channels, height, width, num_classes):
        super().__init__()
        self.linear = nn.Linear(channels * height * width, num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Negative(Linear):
    """The same weights, other logits."""

    def forward(self, x):
        return -super().forward(x)


def fitted(images, labels):
    """The linear network of least squares."""
    x = torch.cat([images.flatten(1).float() / 255, torch.ones(len(labels), 1)], dim=1)
    goal = 10 * torch.eye(10)[labels]
    solution = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ goal).T
    model = Linear(1, 8, 8, 10)
    model.load_state_dict({"linear.weight": solution[:, :-1].contiguous(), "linear.bias": solution[:, -1].contiguous()})
    return model


def save_run(folder, norm="Linf", rows=slice(None), **changes):
    """A run folder whose network is fitted to these training images of the digits."""
    changes = {"network": "linear_networks:Linear", "hinge_maxeps": 0.3, **changes}
    config = stored_config({**PRESETS["digits", norm].to_dict(), **changes})
    train = load_dataset(Source("digits"), Sizes(val=config.val_size, test=0), seed=config.seed, device=CPU).train
    model = fitted(train.images[rows], train.labels[rows])
    folder.mkdir()
    checkpoint.save(folder / "model_best.pt", {"epoch": 1, "model": model.state_dict(), "config": config.to_dict()})
    return folder


def attack(run, *flags):
    """The status of repeated PGD on a few of its images."""
    return evaluate_on_pgd_attacks.main(["--model", str(run), *SMALL, *map(str, flags)])


def subject_of(run, *flags):
    return load_subject(parse_pgd(["--model", str(run), *SMALL, *map(str, flags)]), CPU)
