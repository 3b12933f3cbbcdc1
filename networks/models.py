"""The former home of the networks: each now has a file of its own, and `build.py` finds them by name."""

from networks.build import build_model
from networks.lenet import LeNet5Madry
from networks.standardisation import PerImageStandardize
from networks.wide_resnet import WideResNet, wrn28_4

__all__ = ["LeNet5Madry", "PerImageStandardize", "WideResNet", "build_model", "wrn28_4"]
