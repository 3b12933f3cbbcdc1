"""Image folders: which images there are, checked by their headers; and the pixels of one.

C channels, H height, W width; pixels are uint8, turned upright where the camera noted how it was held (EXIF).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import center_crop, resize

from errors import UserError, some

GREY_MODES = ("1", "L", "LA")
PLAIN_MODES = (*GREY_MODES, "RGB", "RGBA", "P", "PA")  # which grey or red, green and blue say whole
ORIENTATION = 0x0112  # EXIF's tag; above 4: turned by a right angle
HEADER_THREADS = 8  # a header is little work and, on a network disk, a long wait


def list_folder(
    root: Path, part: str, image_size: int | None = None
) -> tuple[list[str], tuple[int, int, int], dict[str, int], str]:
    """The images of `<part>/<class>/*`: their paths, sorted by class and name; the shape (C, H, W) of every one; how many
    each class has, by name, in the order of the labels; and the same in words, with the files that are not used and the images
    that are turned into something else.

    One channel if every image is grey, else three. No pixel is read. image_size: the side to which they will be brought;
    None: they must be of one size.

    :raises UserError: if folders or images are missing, or a header is damaged or of another size.
    """
    folder = root / part
    if not folder.is_dir():
        raise UserError(
            f"image folder {folder.absolute()}: not there: --data_root must hold train/<class>/* and test/<class>/*"
        )
    parts = {
        name: {path.name for path in (root / name).iterdir() if path.is_dir() and not path.name.startswith(".")}
        for name in ("train", "test")
        if (root / name).is_dir()
    }
    classes, everywhere = sorted(parts[part]), set().union(*parts.values())
    if len(classes) < 2 or everywhere != parts[part]:
        odd = (sorted(everywhere - parts[part]) or classes or ["<class>"])[0]
        alike = [name for name in everywhere if name != odd and normalize("NFC", name) == normalize("NFC", odd)]
        names = f"{odd!r} is not in both: add or remove that folder"
        if alike:
            names = f"{odd!a} is not in both, {alike[0]!a} looks alike: rename that folder"
        if everywhere == parts[part]:
            names = f"here {'is' if classes else 'are'} {len(classes)}: add a folder of images for each class"
        raise UserError(
            f"image folder {folder.absolute()}: train and test need the same two or more classes, and {names}"
        )
    paths: list[str] = []
    counts, unused = dict[str, int](), sorted(path.name for path in folder.iterdir() if path.name not in classes)
    lie = {name: (folder / name).resolve() for name in classes}
    for name in classes:
        if same := [other for other in classes if other < name and lie[other] == lie[name]]:
            raise UserError(f"image folder {(folder / name).absolute()}: is the same folder as {same[0]!r}: remove one")
        files = _files(folder / name, root)
        images = [path for path in files if path.lower().endswith(IMG_EXTENSIONS)]
        if not images:
            raise UserError(
                f"image folder {folder.absolute()}: no image in {name!r}, kinds are {' '.join(IMG_EXTENSIONS)}: put some "
                "there, or remove that folder from train and test"
            )
        unused += [Path(path).name for path in files if not path.lower().endswith(IMG_EXTENSIONS)]
        counts[name] = len(images)
        paths += images
    about = f"{part}: " + some([f"{name} {count}" for name, count in counts.items()])
    if unused:
        about += f"; {len(unused)} not used, no image in a class folder: {some(unused)}"
    shape, turned = _common_shape(paths, image_size)
    return paths, shape, counts, about + turned


def _files(folder: Path, root: Path) -> list[str]:
    """Every file below the folder of a data set that lies in root, in torchvision's order.

    :raises UserError: for a link to a folder it lies in, or to another class, which would give the same images again.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        for link in filter(Path.is_symlink, (Path(place, name) for name in folders)):
            if link.resolve().is_relative_to(root.resolve()) or folder.resolve().is_relative_to(link.resolve()):
                raise UserError(f"image folder {link.absolute()}: is a link to a folder of this data set: remove it")
        found.append((place, sorted(names)))
    return [str(Path(place, name)) for place, names in sorted(found) for name in names]


def _common_shape(paths: list[str], image_size: int | None) -> tuple[tuple[int, int, int], str]:
    """(C, H, W), from the headers or of that size; and in words what of some images is lost or made up."""
    with ThreadPool(HEADER_THREADS) as pool:
        headers = list(pool.imap(_header, paths, chunksize=64))  # in order: the first damaged one is named
    width, height, *_ = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if image_size is None and header[:2] != (width, height):
            raise UserError(
                f"image {Path(path).absolute()}: {header[0]}x{header[1]} pixels where {Path(paths[0]).name} has "
                f"{width}x{height}: give --image_size S, the side to which all are resized and cropped"
            )
    modes = Counter(mode for _, _, mode, _ in headers)
    greys, transparent = sum(modes[mode] for mode in GREY_MODES), sum(seen_through for *_, seen_through in headers)
    all_grey = greys == len(headers)
    words = f"; {greys} grey, repeated in three channels" if greys and not all_grey else ""
    words += f"; {transparent} with transparency, which is dropped" if transparent else ""
    words += "".join(f"; {modes[mode]} converted from {mode}" for mode in modes if mode not in PLAIN_MODES)
    return (1 if all_grey else 3, image_size or height, image_size or width), words


def _header(path: str) -> tuple[int, int, str, bool]:
    """Width, height, Pillow's mode, and whether it has transparency."""
    with _opened(path) as image:
        said = {
            "exif",
            "xmp",
            "XML:com.adobe.xmp",
        } & image.info.keys() and image.format != "TIFF"  # PIL has turned a TIFF
        turned = said and image.getexif().get(ORIENTATION, 1) > 4
        size = image.size[::-1] if turned else image.size
        return (*size, image.mode, image.has_transparency_data)


def read_image(path: str, shape: tuple[int, int, int], image_size: int | None = None) -> np.ndarray:
    """The pixels of one image of a folder of this shape, (C, H, W) uint8; grey ones are repeated where others are not.

    image_size: if given, the shorter side is resized to it, bilinearly and antialiased, and the middle is cut out.

    :raises UserError: if it cannot be read whole, or is not what its header said when the folder was listed.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image).convert("L" if image.mode in GREY_MODES else "RGB")
        if image_size is not None:
            upright = center_crop(resize(upright, [image_size]), [image_size])
        pixels = np.asarray(upright)
    pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    if pixels.shape[1:] != shape[1:] or pixels.shape[0] > shape[0]:
        raise UserError(f"image {Path(path).absolute()}: changed since the run started: put it back")
    return np.broadcast_to(pixels, shape)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            raw = [args if isinstance(args, str) else str(args[0]) for *_, args in image.tile if args]
            if image.mode[0] in "IF" or any(";16" in mode for mode in raw):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}")
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # a camera's JPEG with a preview behind the picture
                raise ValueError(f"{pages} pages or frames in one file, save each by itself")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {Path(path).absolute()}: cannot be read ({error}): mend or remove it") from None
