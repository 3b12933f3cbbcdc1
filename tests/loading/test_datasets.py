"""Data sets: splits, batches, augmentation, and what happens to damaged or missing files."""

import hashlib
import itertools
import pickle
import shutil
import struct
import urllib.error
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from errors import UserError
from folders import images, pictures
from loading.batches import TrainBatches, epoch_order, steps_per_epoch
from loading.crops import Augment, draw_crops
from loading.datasets import MNIST_FILES, load_dataset, load_own, load_test
from processes.distributed import World
from utils import AUGMENT, generator

CPU = torch.device("cpu")


def load(name, root=".", seed=0, **sizes):
    return load_dataset(name, str(root), seed=seed, device=CPU, **sizes)


def test_digits():
    data = load("digits", val_size=200)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (1200, 200, 397, 10)
    assert data.train.images.dtype == torch.uint8 and data.train.shape == (1, 8, 8)
    for split in (data.train, data.val, data.test):
        share = torch.bincount(split.labels, minlength=10) / len(split)
        assert (share - 0.1).abs().max() < 0.02  # stratified
    everything = torch.cat([s.images.flatten(1) for s in (data.train, data.val, data.test)])
    assert everything.max() == 255 and everything.min() == 0 and len(everything) == 1797
    again = load("digits", val_size=200, seed=5)
    assert torch.equal(again.val.images, data.val.images)  # fixed: does not depend on the seed
    part = load("digits", val_size=200, train_size=30, test_size=20)
    assert (len(part.train), len(part.test)) == (30, 20) and torch.equal(part.train.images, data.train.images[:30])


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10 training and 4 test images, 12x12 RGB."""
    return pictures(tmp_path, 10, 4)


def test_image_folder(folder):
    data = load("imagefolder", folder)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (27, 3, 12, 3)
    assert data.train.shape == (3, 12, 12)
    assert torch.bincount(data.val.labels).tolist() == [1, 1, 1]
    assert sorted(torch.cat([data.train.numbers, data.val.numbers]).tolist()) == list(range(30))
    first = np.asarray(Image.open(folder / "test" / "ant" / "000.png")).transpose(2, 0, 1)
    assert np.array_equal(data.test.images[0].numpy(), first)
    seeds = [load("imagefolder", folder, seed=s, val_size=6).val.numbers.sort().values.tolist() for s in range(4)]
    assert len({tuple(s) for s in seeds}) > 1  # drawn by seed
    part = load_test("imagefolder", str(folder), test_size=6, device=CPU).split
    assert torch.bincount(part.labels).tolist() == [2, 2, 2]
    assert torch.equal(part.images, data.test.images[part.numbers])


def test_draws_are_those_of_the_committed_runs(folder):
    """Else `--split val` would show their networks images that they were trained on."""
    digits = load("digits", val_size=200)
    assert digits.val.numbers[:6].tolist() == [1104, 259, 753, 1000, 1163, 1281]
    assert load("imagefolder", folder).val.numbers.tolist() == [25, 4, 18]
    assert epoch_order(100, 3, 2)[:6].tolist() == [30, 93, 35, 63, 22, 82]


@pytest.mark.parametrize("name", ["digits", "imagefolder"])
@pytest.mark.parametrize("split", ["val", "train"])
def test_images_of_a_training_run_are_found_again(folder, name, split):
    sizes = {"val_size": 20, "train_size": 60} if name == "digits" else {"val_size": 6, "train_size": 15}
    data = getattr(load(name, folder, seed=3, **sizes), split)
    own = load_own(name, str(folder), split, seed=3, size=None, device=CPU, **sizes)
    assert torch.equal(own.split.images, data.images) and torch.equal(own.split.numbers, data.numbers)
    part = load_own(name, str(folder), split, seed=3, size=3, device=CPU, **sizes).split
    assert len(part) == 3 and set(part.numbers.tolist()) < set(data.numbers.tolist())
    with pytest.raises(UserError, match=f"--test_size 100: .* images in --split {split}"):
        load_own(name, str(folder), split, seed=3, size=100, device=CPU, **sizes)


def test_grey_and_mixed_image_folders(folder):
    """One channel if every image is grey, else three, the grey ones repeated."""
    paths = sorted(folder.rglob("*.png"))
    for path, grey in zip(paths, images(len(paths), 12, mode="L"), strict=True):
        (grey if path.name > "001.png" else grey.convert("LA")).save(path)
    assert load("imagefolder", folder).train.shape == (1, 12, 12)
    images(1, 12)[0].save(folder / "test" / "cat" / "001.png")
    with pytest.raises(UserError, match="must be alike"):
        load("imagefolder", folder)
    images(1, 12)[0].convert("P").save(folder / "train" / "bee" / "003.png")
    mixed = load("imagefolder", folder, val_size=3).train
    first = torch.from_numpy(np.array(Image.open(folder / "train" / "ant" / "005.png")))
    assert mixed.shape == (3, 12, 12) and (mixed.images == first).flatten(1).all(1).any()


def sixteen_bits(path):
    """A PNG of 12x12 pixels, 16 bits a colour, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(12 * (1 + 72)))) + chunk(b"IEND", b"")
    )


def in_both(change):
    return lambda folder: [change(folder / part) for part in ("train", "test")]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: images(1, 13)[0].save(f / "train/bee/003.png"), r"003\.png: 13x13 pixels where 000\.png has 12x12"),
        (lambda f: (f / "train/ant/001.png").write_bytes((f / "train/ant/001.png").read_bytes()[:60]), "001.png"),
        (lambda f: (f / "test/ant/002.png").write_text("<html>"), r"002\.png: cannot be read"),
        (lambda f: shutil.rmtree(f / "test/cat"), "cat"),
        (in_both(lambda part: (part / "dog").mkdir()), "dog"),
        (lambda f: shutil.rmtree(f / "test"), "test"),
        (in_both(lambda part: [shutil.rmtree(part / name) for name in ("bee", "cat")]), "classes, and here is 1: add"),
        (lambda f: [images(1, 14)[0].save(path) for path in (f / "test").rglob("*.png")], "must be alike"),
        (lambda f: images(1, 12)[0].convert("F").save(f / "train/bee/4.tiff"), r"4\.tiff.*8 bits"),
        (
            lambda f: images(1, 12)[0].save(f / "train/bee/scan.tiff", save_all=True, append_images=images(2, 12)),
            r"scan\.tiff: cannot be read \(3 pages or frames in one file",
        ),
        (lambda f: (f / "train/ant/more").symlink_to(f / "train" / "bee"), "is a link to a folder of this data set"),
        (in_both(lambda part: (part / "dog").symlink_to(part / "ant")), "dog: is the same folder as 'ant'"),
        (lambda f: sixteen_bits(f / "train/bee/deep.png"), r"deep\.png.*8 bits"),
        (  # as a Mac and a Linux machine write the same é
            lambda f: [
                (f / part / "cat").rename(f / part / name) for part, name in (("train", "\u00e9"), ("test", "e\u0301"))
            ],
            r"'e?\\(u0301|xe9)' is not in both, 'e?\\(u0301|xe9)' looks alike",
        ),
    ],
)
def test_damaged_image_folders_are_named(folder, damage, named):
    damage(folder)
    with pytest.raises(UserError, match=named):
        load("imagefolder", folder)


@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_pictures_stand_upright_as_the_camera_says(folder, where):
    """Turned by a right angle in EXIF or XMP, the size with it; read in memory and from disk."""
    for path in sorted(folder.rglob("*.png")):
        Image.new("RGB", (8, 12)).save(path.with_suffix(".jpg"))
        path.unlink()
    upright = Image.fromarray(np.arange(0, 192, 2, dtype=np.uint8).reshape(12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    said = {"exif": exif} if where == "exif" else {"xmp": xmp}
    turned = upright.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "test/ant/000.jpg", quality=95, **said)
    for streaming in (False, True):
        found = load("imagefolder", folder, streaming=streaming).test.batch(torch.tensor([0])).x
        assert found.shape == (1, 3, 12, 8)
        assert (255 * found[0, 0] - torch.from_numpy(np.array(upright))).abs().max() < 16


def test_links_to_folders_elsewhere_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    images(1, 12)[0].save(elsewhere / "more.png")
    (folder / "train" / "ant" / "more").symlink_to(elsewhere)
    assert len(load("imagefolder", folder).train) == 28


def test_what_a_folder_holds_is_said(folder):
    assert load("imagefolder", folder).about == "train: ant 10, bee 10, cat 10; test: ant 4, bee 4, cat 4"
    for name in ("train/labels.csv", "train/bee/shot.heic", "test/cat/old.gif"):
        (folder / name).write_text("")
    assert load("imagefolder", folder).about == (
        "train: ant 10, bee 10, cat 10; 2 not used, no image in a class folder: labels.csv, shot.heic; "
        "test: ant 4, bee 4, cat 4; 1 not used, no image in a class folder: old.gif"
    )


def test_what_is_lost_or_made_up_of_a_picture_is_said(tmp_path):
    pictures(tmp_path, 10, 4, size=16)
    for name, mode in (("a.png", "RGBA"), ("b.png", "L"), ("c.png", "LA"), ("d.jpg", "CMYK"), ("e.png", "1")):
        Image.new(mode, (16, 16)).save(tmp_path / "train" / "ant" / name)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    about = load("imagefolder", tmp_path).about
    assert "; 1 not used, no image in a class folder: .ipynb_checkpoints; " in about
    assert (
        "; 3 grey, repeated in three channels; 2 with transparency, which is dropped; 1 converted from CMYK; test: "
        in about
    )
    shutil.rmtree(tmp_path / "test")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    assert "warning: the test images are the training images" in load("imagefolder", tmp_path).about


@pytest.mark.parametrize(
    ("sizes", "flag"),
    [
        ({"val_size": 1400}, "--val_size"),
        ({"val_size": 200, "train_size": 1201}, "--train_size 1201: digits has 1200 training images beside validation"),
        ({"val_size": 200, "test_size": 398}, "--test_size 398: digits has 397 test images"),
        ({"val_size": 3}, "--val_size"),
    ],
)
def test_sizes_that_do_not_fit(sizes, flag):
    with pytest.raises(UserError, match=flag):
        load("digits", **sizes)


def test_a_folder_of_few_images_is_refused_in_words_of_ours(tmp_path):
    pictures(tmp_path, 2, 2, classes=("ant", "bee"))
    with pytest.raises(UserError) as error:
        load("imagefolder", tmp_path)
    said = str(error.value)
    assert "--val_size is not given and a tenth of the images is 0: of 4 images in 2 classes, 2 in the smallest" in said
    assert "train_size" not in said
    assert len(load("imagefolder", tmp_path, val_size=2).val) == 2


# --- the files of MNIST and CIFAR-10, damaged on the disk ------------------------------------------------------------


def idx(array):
    """A file of MNIST's format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def small_mnist(tmp_path, monkeypatch):
    """MNIST of 40 + 20 images in whole files, whose sums are taken for the right ones: {name: path}."""
    folder, draw, sums = tmp_path / "MNIST" / "raw", np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for name in MNIST_FILES:
        count = 40 if name.startswith("train") else 20
        array = draw.integers(0, 256, (count, 28, 28)) if "images" in name else np.arange(count) % 10
        (folder / name).write_bytes(idx(array.astype(np.uint8)))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr("loading.datasets.MNIST_FILES", sums)
    assert len(load("mnist", tmp_path, val_size=10).train) == 30
    return {name: folder / name for name in sums}


def small_cifar10(tmp_path, monkeypatch):
    """CIFAR-10 of 5 x 20 + 20 images, likewise."""
    kind = torchvision.datasets.CIFAR10
    folder, draw, found = tmp_path / kind.base_folder, np.random.default_rng(0), {}
    folder.mkdir()

    def write(name, content):
        found[name] = folder / name
        found[name].write_bytes(pickle.dumps(content))
        return hashlib.md5(found[name].read_bytes()).hexdigest()

    def part():
        return {"data": draw.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}

    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(kind, listed, [[name, write(name, part())] for name, _ in getattr(kind, listed)])
    meta = {**kind.meta, "md5": write(kind.meta["filename"], {"label_names": list("abcdefghij")})}
    monkeypatch.setattr(kind, "meta", meta)
    assert len(load("cifar10", tmp_path, val_size=10).train) == 90
    return found


@pytest.fixture(params=["mnist", "cifar10"])
def whole(request, tmp_path, monkeypatch):
    """(name, root, files) of each of them, on a machine without a network."""

    def no_network(*_, **__):
        raise urllib.error.URLError("no network in this test")

    files = {"mnist": small_mnist, "cifar10": small_cifar10}[request.param](tmp_path, monkeypatch)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return request.param, tmp_path, files


def refused(name, root, path, *parts):
    """By training and by evaluation, in one message that names the file and the remedy."""
    readers = lambda: load(name, root, val_size=10), lambda: load_test(name, str(root), test_size=None, device=CPU)
    for reader in readers:
        with pytest.raises(UserError) as error:
            reader()
        for part in (str(path), "--data_root", *parts):
            assert part in str(error.value)


@pytest.mark.parametrize("number", [0, -1])
def test_a_changed_data_file_is_named_with_both_sums(whole, number):
    name, root, paths = whole
    path = list(paths.values())[number]
    raw = path.read_bytes()
    changed = raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]
    path.write_bytes(changed)
    refused(name, root, path, *(hashlib.md5(content).hexdigest() for content in (raw, changed)), "delete it")


def test_a_missing_data_file_is_named(whole):
    """The download is tried, and fails as it does without a network."""
    name, root, paths = whole
    path = list(paths.values())[1]
    path.unlink()
    path.symlink_to(root / "moved")  # a link that leads nowhere is no file either
    refused(name, root, path.name, str(path.parent), "the download failed")
    assert not path.exists()


def test_a_data_file_that_cannot_be_read_is_named(whole):
    name, root, paths = whole
    path = next(iter(paths.values()))
    path.unlink()
    path.mkdir()
    refused(name, root, path, "cannot be read", "directory")


def test_real_mnist(mnist_root):
    data = load("mnist", mnist_root, val_size=5000)
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
    # The validation set is the first 5000 training images.
    assert data.val.numbers.tolist() == list(range(5000)) and data.train.numbers[0] == 5000
    assert data.val.labels[:5].tolist() == [5, 0, 4, 1, 9] and data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    batch = data.train.batch(torch.tensor([0, 7]))
    assert batch.x.shape == (2, 1, 28, 28) and batch.x.min() >= 0 and batch.x.max() <= 1


def explicit_crop(x, pad, top, left, flip):
    padded = F.pad(x[None], (pad, pad, pad, pad), mode="reflect")[0]
    out = padded[:, top : top + x.shape[1], left : left + x.shape[2]]
    return out.flip(2) if flip else out


@pytest.mark.parametrize(("pad", "flips"), [(4, (False, True)), (2, (False,))])
def test_augmentation_is_reflect_pad_crop_flip(pad, flips):
    x = torch.rand(64, 3, 12, 10)
    out = draw_crops(64, generator(0, AUGMENT, 0), Augment(pad, len(flips) == 2)).of(x)
    offsets = range(2 * pad + 1)
    ways = list(itertools.product(offsets, offsets, flips))
    found = []
    for image, crop in zip(x, out, strict=True):
        (way,) = [way for way in ways if torch.equal(explicit_crop(image, pad, *way), crop)]
        found.append(way)
    tops, lefts, flipped = zip(*found, strict=True)
    assert set(tops) == set(offsets) == set(lefts) and set(flipped) == set(flips)
    assert 20 < sum(flipped) < 44 or len(flips) == 1


def test_augmented_batches_are_a_function_of_seed_and_step(folder):
    split = load("imagefolder", folder).train
    cropped = Augment()

    def batch(step, seed=0, augment=cropped):
        return TrainBatches(split, batch_size=9, seed=seed, augment=augment)(step)

    assert torch.equal(batch(4).x, batch(4).x)
    assert not torch.equal(batch(4).x, batch(4, augment=None).x)
    assert torch.equal(batch(4).index, batch(4, augment=None).index)
    assert not torch.equal(batch(4).index, batch(4, seed=1).index)
    plain = batch(4, augment=None)
    assert torch.equal(plain.x, split.images[plain.index].float() / 255)
    assert torch.equal(plain.y, split.labels[plain.index])


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("augment", [None, Augment()])
def test_the_parts_of_all_processes_are_the_batch_of_one(folder, ranks, augment):
    """Rows and draws, also of the short last batch of an epoch, and where some processes get no row."""
    split = load("imagefolder", folder).train
    settings = {"batch_size": 8, "seed": 3, "augment": augment}
    last = steps_per_epoch(len(split), 8) - 1
    assert (len(split), last) == (27, 3)
    for step in (0, last, last + 1):
        whole = TrainBatches(split, **settings)(step)
        parts = [TrainBatches(split, rank=rank, ranks=ranks, **settings)(step) for rank in range(ranks)]
        assert len(whole.y) == (3 if step == last else 8)
        assert max(len(part.y) for part in parts) == -(-len(whole.y) // ranks)
        for name in ("x", "y", "index"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert all(part.x.shape[1:] == (3, 12, 12) for part in parts)
        taken = [torch.arange(len(whole.y))[World(rank, ranks).rows(len(whole.y))] for rank in range(ranks)]
        assert torch.equal(torch.cat(taken), torch.arange(len(whole.y)))


def test_grey_batches_have_the_plain_memory_order():
    """Also augmented: a network that calls `view` after a convolution must work on them."""
    split = load("digits", val_size=200).train
    for augment in (None, Augment()):
        batch = TrainBatches(split, batch_size=8, seed=0, augment=augment)(0)
        assert batch.x.stride() == (64, 64, 8, 1)
