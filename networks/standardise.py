"""What happens to images before a network's first layer, where a checkpoint's own program did it outside the network.

B batch, C channels. Images in [0, 1] at any time: attacks work before the standardisation, and go through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .foreign import MEAN, STD, OurKeys
from .resnets import PerImageStandardize


class Normalise(nn.Module):
    """(x - mean) / std by channel, as torchvision's `Normalize`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return (x - self.mean) / self.std


def form(channels: int) -> str:
    """What may be given for images of so many channels, in words."""
    example = "0.13,0.31" if channels == 1 else "0.49,0.48,0.45,0.25,0.24,0.26"
    return f"image, none, or the means of all channels and then their standard deviations, as {example}"


def standardisation(text: str, channels: int) -> nn.Module:
    """`image`: each image by its own mean and deviation; `none`; `M1,M2,M3,S1,S2,S3`: by channel -> the module.

    :raises ValueError: if the text is none of these, or the numbers are not those of images in [0, 1].
    """
    if text in ("image", "none"):
        return PerImageStandardize() if text == "image" else nn.Identity()
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"give {form(channels)}") from None
    mean, std = numbers[:channels], numbers[channels:]
    if len(mean) != len(std):
        raise ValueError(
            f"{len(numbers)} numbers for images of {channels} channel{'s'[: channels > 1]}: give {form(channels)}"
        )
    if not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise ValueError(
            "means are from 0 to 1 and deviations above 0, up to 1, as images are: divide those of bytes by 255"
        )
    return Normalise(mean, std)


def said_by(found: OurKeys, channels: int) -> str | None:
    """What the file's own buffers say: `none` where it has none, the numbers, or None where they are not understood."""
    if not found.normalisation:
        return "none"
    numbers = []
    for name in (MEAN, STD):
        values = [value.float().flatten() for key, value in found.normalisation.items() if name.search(key)]
        values = [value.expand(channels) if len(value) == 1 else value for value in values]
        if not values or any(not torch.equal(value, values[0]) for value in values):
            return None
        numbers += [str(number) for number in values[0].numpy()]
    return ",".join(numbers)


def behind_standardisation(
    model: nn.Module, asked: str | None, found: OurKeys, foreign: bool, channels: int
) -> tuple[nn.Module, str]:
    """The network behind what is asked for, or else what its file says; and that in words, if it is not the network's own.

    found: its weights. foreign: whether their program may have done anything to images, and the network is one of ours
    that standardises each.

    :raises ValueError: if nothing is asked for and the file does not say it, or what is asked for means nothing.
    """
    own = isinstance(model, nn.Sequential) and isinstance(model[0], PerImageStandardize)
    said = said_by(found, channels)
    if asked is None and (said is None or (foreign and said == "none")):
        where = "not in the file" if said else f"in {', '.join(found.normalisation)} in a form not known here"
        raise ValueError(
            f"weights of another program: what it does to images before the first layer is {where}: add --standardise none "
            f"(right for most of RobustBench), or {form(channels)}"
        )
    how = str(said) if asked is None else asked.strip().lower()
    if not foreign and how == ("image" if own and asked else "none"):
        return model, ""
    behind = list(model.children())[1:] if own else [model]
    return nn.Sequential(standardisation(how, channels), *behind), how
