"""Small folders of images."""

import numpy as np
from PIL import Image


def images(count, size, seed=0, mode="RGB"):
    shape = (count, size, size) if mode == "L" else (count, size, size, 3)
    return [Image.fromarray(a, mode) for a in np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)]
