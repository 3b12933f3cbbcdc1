"""A linear network fitted to the digits by least squares."""

import torch
from torch import nn


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
