"""Small folders of images."""

import numpy as np
from PIL import Image


def images(count, size, seed=0, mode="RGB"):
    shape = (count, size, size) if mode == "L" else (count, size, size, 3)
    return [Image.fromarray(a, mode) for a in np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)]


def pictures(folder, train, test, classes=("ant", "bee", "cat"), size=12):
    """`folder`, with so many RGB images of each class in train/ and test/, each class brighter than the one before."""
    for part, count in (("train", train), ("test", test)):
        for i, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            draws = np.random.default_rng(10 * i + (part == "test"))
            for j, pixels in enumerate(
                draws.integers(70 * i % 150, 70 * i % 150 + 100, (count, size, size, 3), dtype=np.uint8)
            ):
                Image.fromarray(pixels).save(folder / part / name / f"{j:03}.png")
    return folder
