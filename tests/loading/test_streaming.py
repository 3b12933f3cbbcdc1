"""Images read from disk while training: the batches and the run are those of images in memory; no thread is left behind."""

import shlex
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from command_lines import fails, rows
from folders import pictures
from loading import batches, datasets, streaming
from loading.batches import TrainBatches
from loading.crops import Augment
from loading.datasets import load_dataset
from records import checkpoint

CPU = torch.device("cpu")
NET = """
import torch
def net(channels, height, width, num_classes):
    return torch.nn.Sequential(
        torch.nn.Dropout(0.1), torch.nn.BatchNorm2d(channels), torch.nn.Flatten(),
        torch.nn.Linear(channels * height * width, num_classes),
    )
"""
SMALL = shlex.split(
    "--dataset imagefolder --data_root pictures --norm Linf --hinge_maxeps 0.1 --device cpu --network streaming_nets.py:net "
    "--batch_size 8 --nb_iter 2 --disp_interval 1 --val_size 6 --lr 0.01"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes of 12 training and 4 test images; and the network that trains on them."""
    monkeypatch.chdir(tmp_path)
    Path("streaming_nets.py").write_text(NET)
    return pictures(tmp_path / "pictures", 12, 4)


def load(folder, num_workers=0, streaming=True, device=CPU):
    how = {"streaming": streaming, "num_workers": num_workers}
    return load_dataset("imagefolder", str(folder), val_size=6, seed=0, device=device, **how)


def reading():
    return [thread for thread in threading.enumerate() if thread.name.startswith(streaming.THREAD)]


def same(a, b):
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [0, 2])
def test_batches_are_those_in_memory(folder, num_workers, start):
    """Bit for bit, from the start and from the middle of an epoch, over two epochs' ends, after a leap, and in parts."""
    whole, streamed = load(folder, streaming=False), load(folder, num_workers)
    here, there = whole.train, streamed.train
    assert there.shape == here.shape and len(there) == len(here) == 30 and torch.equal(there.numbers, here.numbers)
    settings = {"batch_size": 8, "seed": 0, "augment": Augment()}
    random_state = torch.get_rng_state()
    with TrainBatches(there, **settings) as batches:
        for step in [*range(start, start + 9), 3, 4]:
            batch = batches(step)
            assert same(batch, TrainBatches(here, **settings)(step)), step
            assert batch.x.dtype == torch.float32 and batch.x.is_contiguous()
        assert bool(num_workers) == bool(reading()) and len(reading()) <= num_workers
    assert not reading()
    assert torch.equal(torch.get_rng_state(), random_state)  # dropout draws from it
    parts = {**settings, "rank": 6, "ranks": 7}
    with TrainBatches(there, **parts) as batches:
        for step in range(5):
            assert same(batches(step), TrainBatches(here, **parts)(step))
    assert len(TrainBatches(here, **parts)(3).y) == 0  # of the last 6 rows
    for name in ("train", "val", "test"):  # as checks take them
        a, b = (getattr(data, name).batches(torch.arange(6).split(5)) for data in (whole, streamed))
        assert all(same(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_batches_on_a_gpu_are_those_in_memory(folder):
    """Through page-locked memory, which is given back before the copy is done."""
    cuda = torch.device("cuda")
    here = load(folder, streaming=False, device=cuda).train
    settings = {"batch_size": 8, "seed": 0, "augment": Augment()}
    with TrainBatches(load(folder, 2, device=cuda).train, **settings) as batches:
        got = [batches(step) for step in range(20)]
    assert all(same(batch, TrainBatches(here, **settings)(step)) for step, batch in enumerate(got))


def test_the_threads_read_and_the_main_one_does_not(folder, monkeypatch):
    """And not further ahead than two batches each, as there is no end to the steps of training."""
    split, read, reads = load(folder, 2).train, streaming.read_image, []

    def read_image(*given):
        assert threading.current_thread() is not threading.main_thread()
        reads.append(given)
        return read(*given)

    monkeypatch.setattr(streaming, "read_image", read_image)
    with TrainBatches(split, batch_size=8, seed=0, augment=Augment()) as batches:
        batches(0), batches(1)
    assert 16 <= len(reads) <= 8 * (2 + 2 * 2)
    with closing(split.batches(torch.arange(30).split(7))) as batches:
        assert [len(batch.y) for batch in batches] == [7, 7, 7, 7, 2]


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


def swap(path):
    Image.new("RGB", (11, 11)).save(path)


@pytest.mark.parametrize(
    ("num_workers", "damage", "what"),
    [(0, truncate, "cannot be read"), (2, swap, "changed"), (2, Path.unlink, "No such file")],
)
def test_an_image_that_turns_out_damaged_ends_the_run_in_one_line(
    folder, num_workers, damage, what, capsys, monkeypatch
):
    """Found when it is read; what was trained before is kept, and goes on once the image is mended."""
    split = load(folder).train
    path = Path(split.images.paths[int(batches.epoch_order(30, 0, 0)[20])])  # in the third batch
    content, described = path.read_bytes(), datasets._found

    def found_then_damaged(*given):
        found = described(*given)
        damage(path)
        return found

    argv = [*SMALL, "--streaming", "--num_workers", str(num_workers), "--max_steps", "5", "--savepath", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "_found", found_then_damaged)
        fails(capsys, train.main, argv, "error: image ", path.name, what)
    assert [r["step"] for r in rows(Path("run"))] == [1, 2] and not reading()
    path.write_bytes(content)
    assert train.main([*argv, "--resume"]) == 0
    assert train.main([*argv[:-1], "whole"]) == 0
    assert_same_run(Path("run"), Path("whole"))


def assert_same_run(one, other):
    a, b = (checkpoint.load(run / "last.pt") for run in (one, other))
    for key in set(a) - {"config"}:
        assert checkpoint.digest(a[key]) == checkpoint.digest(b[key]), key
    assert rows(one) == rows(other)
    assert np.array_equal(np.load(one / "margins.npy"), np.load(other / "margins.npy"))


def test_a_run_from_disk_is_the_run_from_memory(folder, capsys):
    """Weights, radii and rows bit for bit, with 0 and 2 threads; and each goes on where the other was, in mid-epoch."""
    argv = [*SMALL, "--max_steps", "10"]
    assert train.main([*argv, "--no-streaming", "--savepath", "memory"]) == 0
    assert train.main([*argv, "--streaming", "--savepath", "disk"]) == 0
    assert train.main([*argv, "--streaming", "--num_workers", "0", "--savepath", "alone"]) == 0
    for steps, how in (("3", ["--streaming"]), ("6", ["--no-streaming"]), ("10", ["--streaming"])):
        assert train.main([*SMALL, "--max_steps", steps, *how, "--savepath", "mixed", "--resume"]) == 0
    assert "stay on disk" not in capsys.readouterr().out
    for other in ("disk", "alone"):
        assert_same_run(Path("memory"), Path(other))
    a, b = (checkpoint.load(Path(run) / "last.pt") for run in ("memory", "mixed"))
    assert checkpoint.digest(a["model"]) == checkpoint.digest(b["model"]) and torch.equal(a["eps"], b["eps"])
    assert a["eps"].max() > 0


def test_chosen_by_size(folder, capsys, monkeypatch):
    """Where the images would take more than half of what is free; said in a line."""
    size = (36 + 12) * 3 * 12 * 12
    monkeypatch.setattr(datasets, "free_memory", lambda device: 2 * size)
    assert not load(folder, streaming=None).streamed
    monkeypatch.setattr(datasets, "free_memory", lambda device: 2 * size - 1)
    assert load(folder, streaming=None).streamed and not load(folder, streaming=False).streamed
    assert train.main([*SMALL, "--max_steps", "1", "--savepath", "run"]) == 0
    out = [line for line in capsys.readouterr().out.splitlines() if "stay on disk" in line]
    assert len(out) == 1 and out[0].startswith("pictures: train: ant 12")
    assert 0 < streaming.free_memory(CPU) < 2**50
    assert not load_dataset("digits", streaming=None, val_size=100, seed=0, device=CPU).streamed
