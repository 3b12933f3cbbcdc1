"""Image folders: which images there are, checked by their headers; and the pixels of one.

C channels, H height, W width; pixels are uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torchvision
from PIL import Image

from errors import UserError

GREY_MODES = ("1", "L", "LA")
HEADER_THREADS = 8  # a header is little work and, on a network disk, a long wait


class Listing(NamedTuple):
    """The images of one part of a folder, sorted by class and name."""

    paths: list[str]  # N of them
    labels: np.ndarray  # (N,) int64
    num_classes: int
    shape: tuple[int, int, int]  # (C, H, W) of every image


def list_folder(root: Path, part: str) -> Listing:
    """`<part>/<class>/*` of equal-sized images; one channel if every one is grey, else three. No pixel is read.

    :raises UserError: if folders or images are missing, or a header is damaged or of another size.
    """
    folder = root / part
    if not folder.is_dir():
        raise UserError(
            f"image folder {folder.absolute()}: not there: --data_root must hold train/<class>/* and test/<class>/*"
        )
    try:
        found = torchvision.datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(
            f"image folder {folder.absolute()}: {error}: put images into train/<class> and test/<class>"
        ) from None
    others = {
        p.name for other in ("train", "test") if (root / other).is_dir() for p in (root / other).iterdir() if p.is_dir()
    }
    if len(found.classes) < 2 or others != set(found.classes):
        odd = sorted(others ^ set(found.classes)) or found.classes
        raise UserError(
            f"image folder {folder.absolute()}: train and test need the same two or more classes, and "
            f"{odd[0]!r} is not in both: add or remove that folder"
        )
    paths = [path for path, _ in found.samples]
    return Listing(paths, np.array(found.targets, dtype=np.int64), len(found.classes), _common_shape(paths))


def _common_shape(paths: list[str]) -> tuple[int, int, int]:
    """(C, H, W), from the headers."""
    with ThreadPool(HEADER_THREADS) as pool:
        headers = list(pool.imap(_header, paths, chunksize=64))  # in order: the first damaged one is named
    width, height, _ = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if header[:2] != (width, height):
            raise UserError(
                f"image {Path(path).absolute()}: {header[0]}x{header[1]} pixels where {Path(paths[0]).name} has "
                f"{width}x{height}: all images of a folder must have one size"
            )
    return (1 if all(grey for _, _, grey in headers) else 3, height, width)


def _header(path: str) -> tuple[int, int, bool]:
    """Width, height, and whether it is grey."""
    with _opened(path) as image:
        return (*image.size, image.mode in GREY_MODES)


def read_image(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of one image of a folder of this shape, (C, H, W) uint8; grey ones are repeated where others are not.

    :raises UserError: if it cannot be read whole, or is not what its header said when the folder was listed.
    """
    with _opened(path) as image:
        pixels = np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    if pixels.shape[1:] != shape[1:] or pixels.shape[0] > shape[0]:
        raise UserError(f"image {Path(path).absolute()}: changed since the run started: put it back")
    return np.broadcast_to(pixels, shape)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"more than 8 bits a pixel, mode {image.mode}")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {Path(path).absolute()}: cannot be read ({error}): mend or remove it") from None
