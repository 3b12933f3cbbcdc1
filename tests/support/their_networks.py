"""Networks written here from the papers, with the names that other programs give their parameters."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from networks.resnets import PerImageStandardize


class TheirBlock(nn.Module):
    """Of both families: BN-ReLU-conv twice; the shortcut of wide ones, and of v2, comes from behind the first ReLU."""

    def __init__(self, inside, outside, stride, wide, v2=False):
        super().__init__()
        self.v2 = v2
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.wide, conv = wide, nn.Conv2d(inside, outside, 1, stride, bias=False)
        if wide and inside != outside:
            self.convShortcut = conv
        elif not wide and stride > 1:
            self.shortcut = nn.Sequential(conv)

    def forward(self, x):
        before = self.bn1(x).relu()
        hidden = self.conv2(self.bn2(self.conv1(before)).relu())
        if hasattr(self, "convShortcut"):
            return hidden + self.convShortcut(before)
        return hidden + (self.shortcut(before if self.v2 else x) if hasattr(self, "shortcut") else x)


def their_group(blocks, inside, outside, stride):
    rest = [TheirBlock(outside, outside, 1, wide=True) for _ in range(blocks - 1)]
    layer = nn.Sequential(TheirBlock(inside, outside, stride, wide=True), *rest)
    return nn.Sequential(OrderedDict(layer=layer))


class TheirWideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016, with RobustBench's names."""

    def __init__(self, depth, k, channels=3):
        super().__init__()
        n = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = their_group(n, 16, 16 * k, 1)
        self.block2 = their_group(n, 16 * k, 32 * k, 2)
        self.block3 = their_group(n, 32 * k, 64 * k, 2)
        self.bn1, self.fc = nn.BatchNorm2d(64 * k), nn.Linear(64 * k, 10)

    def forward(self, x):
        x = self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))).relu()
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class TheirPreAct18(nn.Module):
    """He et al. 2016, with the fast-AT code's names."""

    def __init__(self, v2=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        for i, (inside, outside) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
            first = TheirBlock(inside, outside, min(i, 2), wide=False, v2=v2)
            blocks = first, TheirBlock(outside, outside, 1, wide=False, v2=v2)
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.bn, self.linear = nn.BatchNorm2d(512), nn.Linear(512, 10)

    def forward(self, x):
        for layer in (self.conv1, self.layer1, self.layer2, self.layer3, self.layer4, self.bn):
            x = layer(x)
        return self.linear(F.avg_pool2d(x.relu(), 4).flatten(1))


class TheirStandardised(TheirWideResNet):
    """RobustBench's layout of a WRN-28-4 that standardises each image by itself."""

    def __init__(self):
        super().__init__(28, 4)

    def forward(self, x):
        return super().forward(PerImageStandardize()(x))
