"""Images read from disk while training: the batches and the run are those of images in memory; nothing is left behind."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ranks
import train
from command_lines import fails, rows
from errors import UserError
from flags import parse_train
from loading import batches, datasets, streaming
from loading.batches import TrainBatches
from loading.crops import Augment
from loading.datasets import Sizes, Source, load_dataset
from records import checkpoint
from records.run_folder import RunFolder
from support import ROOT
from train_batches import train_batch
from validation import stored_config

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
    "--dataset imagefolder --data_root pictures --norm Linf --hinge_maxeps 0.1 --device cpu --network streaming_nets:net --batch_size 8 --nb_iter 2 --disp_interval 1 --val_size 6 --lr 0.01"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two would wait for each other where the workers have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(seed, size=12, mode="RGB", brightness=0):
    pixels = np.random.default_rng(seed).integers(brightness, 100 + brightness, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes of 12 training and 4 test images, 12x12 RGB, as PNG, of three degrees of brightness; and the network that trains on them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "streaming_nets.py").write_text(NET)
    for part, count in (("train", 12), ("test", 4)):
        for i, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for j in range(count):
                picture(1000 * i + 10 * j + (part == "test"), brightness=70 * i).save(
                    tmp_path / "pictures" / part / name / f"{j:03}.png"
                )
    return tmp_path / "pictures"


def load(folder, num_workers=0, streaming=True, device=CPU):
    source = Source("imagefolder", str(folder), streaming, num_workers)
    return load_dataset(source, Sizes(val=6), seed=0, device=device)


def same(a, b):
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def children(pid=None):
    """The processes that this one has started and that still run, but for multiprocessing's own servers."""
    pid = pid or os.getpid()
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if b"multiprocessing." not in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [0, 2])
def test_batches_are_those_in_memory(folder, num_workers, start, monkeypatch):
    """Bit for bit, from the start and from the middle of an epoch, over two epochs' ends, after a leap, and in parts."""
    here, there = load(folder, streaming=False).train, load(folder, num_workers).train
    assert there.shape == here.shape and len(there) == len(here) == 30 and torch.equal(there.numbers, here.numbers)
    settings = {"batch_size": 8, "seed": 0, "augment": Augment()}
    if num_workers:
        monkeypatch.setattr(streaming.ImagesOnDisk, "batch", None, raising=False)
    random_state = torch.get_rng_state()
    with TrainBatches(there, **settings) as batches:
        for step in [*range(start, start + 9), 3, 4]:
            batch = batches(step)
            assert same(batch, train_batch(here, step, **settings)), step
            assert batch.x.dtype == torch.float32 and batch.x.is_contiguous()
        assert len(children()) == num_workers
    assert not children()
    assert torch.equal(torch.get_rng_state(), random_state)  # dropout draws from it
    parts = {**settings, "rank": 6, "ranks": 7}
    with TrainBatches(there, **parts) as batches:
        for step in range(5):
            assert same(batches(step), train_batch(here, step, **parts))
    assert len(train_batch(here, 3, **parts).y) == 0  # of the last 6 rows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_batches_on_a_gpu_are_those_in_memory(folder):
    """Through page-locked memory, which is given back before the copy is done."""
    cuda = torch.device("cuda")
    here = load(folder, streaming=False, device=cuda).train
    settings = {"batch_size": 8, "seed": 0, "augment": Augment()}
    with TrainBatches(load(folder, 2, device=cuda).train, **settings) as batches:
        got = [batches(step) for step in range(20)]
    assert all(same(batch, train_batch(here, step, **settings)) for step, batch in enumerate(got))


def test_the_workers_read_and_the_main_process_does_not(folder, monkeypatch):
    split = load(folder, 2).train
    here, workers = os.getpid(), streaming.read_image

    def read_image(*given):
        assert os.getpid() != here
        return workers(*given)

    monkeypatch.setattr(streaming, "read_image", read_image)
    with TrainBatches(split, batch_size=8, seed=0, augment=Augment()) as batches:
        batches(0), batches(1)
    with closing(split.batches(torch.arange(30).split(7))) as batches:
        assert [len(batch.y) for batch in batches] == [7, 7, 7, 7, 2]


def test_the_checks_batches_are_those_in_memory(folder):
    here, there = load(folder, streaming=False), load(folder, 2)
    for name in ("train", "val", "test"):
        a, b = (getattr(d, name).batches(torch.arange(len(getattr(d, name))).split(5)) for d in (here, there))
        assert all(same(*pair) for pair in zip(a, b, strict=True))
    assert not children()
    assert same(here.val.batch(torch.tensor([1, 4])), there.val.batch(torch.tensor([1, 4])))


def test_grey_and_mixed_folders(folder):
    """Grey if every image is grey, else RGB with the grey ones repeated."""
    for k, path in enumerate(sorted(folder.rglob("*.png"))):
        picture(k, mode="LA" if k % 2 else "L").save(path)
    assert load(folder).train.shape == (1, 12, 12)
    assert same(load(folder).val.everything(), load(folder, streaming=False).val.everything())
    picture(0).save(folder / "test" / "cat" / "001.png")
    with pytest.raises(UserError, match="must be alike"):
        load(folder)
    picture(1, mode="P").save(folder / "train" / "bee" / "003.png")
    mixed, memory = load(folder).train, load(folder, streaming=False).train
    assert mixed.shape == (3, 12, 12) and same(mixed.everything(), memory.everything())


def damage_size(folder):
    picture(0, size=13).save(folder / "train" / "bee" / "003.png")
    return r"003\.png: 13x13 pixels where 000\.png has 12x12"


def damage_kind(folder):
    (folder / "test" / "ant" / "002.png").write_text("<html>")
    return r"002\.png: cannot be read"


def damage_depth(folder):
    Image.fromarray(np.full((12, 12), 700, np.uint16)).save(folder / "train" / "ant" / "004.png")
    return r"004\.png: cannot be read \(more than 8 bits"


@pytest.mark.parametrize("damage", [damage_size, damage_kind, damage_depth])
def test_headers_are_checked_before_anything_starts(folder, damage, monkeypatch):
    message = damage(folder)
    monkeypatch.setattr(streaming, "read_image", None)  # no pixel is read
    with pytest.raises(UserError, match=message):
        load(folder)


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


def swap(path):
    picture(0, size=11).save(path)


@pytest.mark.parametrize(
    ("num_workers", "damage", "what"),
    [
        (0, truncate, "cannot be read"),
        (2, truncate, "cannot be read"),
        (2, swap, "changed"),
        (2, Path.unlink, "No such file"),
    ],
)
def test_an_image_that_turns_out_damaged_ends_the_run_in_one_line(
    folder, num_workers, damage, what, capsys, monkeypatch
):
    """Found when it is read; what was trained before is kept, and goes on once the image is mended."""
    split = load(folder).train
    path = Path(split.images.paths[int(batches.epoch_order(30, 0, 0)[20])])  # in the third batch
    content, listed = path.read_bytes(), datasets.list_folder

    def list_folder(*given):
        found = listed(*given)
        if given[1] == "test":
            damage(path)
        return found

    argv = [*SMALL, "--streaming", "--num_workers", str(num_workers), "--max_steps", "5", "--savepath", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "list_folder", list_folder)
        fails_after_progress(capsys, argv, "error: image ", path.name, what)
    assert not children()
    assert [r["step"] for r in rows(Path("run"))] == [1, 2]
    path.write_bytes(content)
    assert train.main([*argv, "--resume"]) == 0
    assert train.main([*argv[:-1], "whole"]) == 0
    assert_same_run(Path("run"), Path("whole"))


def fails_after_progress(capsys, argv, *parts):
    """Status 2 and, after the progress bar, one line."""
    capsys.readouterr()
    assert train.main(argv) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    error = err.splitlines()[-1]
    assert error.startswith("error: ") and all(part in error for part in parts)


def assert_same_run(one, other):
    a, b = (checkpoint.load(run / "last.pt") for run in (one, other))
    for key in set(a) - {"config"}:
        assert checkpoint.digest(a[key]) == checkpoint.digest(b[key]), key
    assert rows(one) == rows(other)
    assert np.array_equal(np.load(one / "margins.npy"), np.load(other / "margins.npy"))


def test_a_run_from_disk_is_the_run_from_memory(folder, capsys):
    """Weights, radii and rows bit for bit, with 0 and 2 workers; and each goes on where the other was, in mid-epoch."""
    argv = [*SMALL, "--max_steps", "10"]
    assert train.main([*argv, "--no-streaming", "--savepath", "memory"]) == 0
    assert train.main([*argv, "--streaming", "--savepath", "disk"]) == 0
    assert train.main([*argv, "--streaming", "--num_workers", "0", "--savepath", "alone"]) == 0
    for steps, how in (
        ("3", ["--streaming"]),
        ("6", ["--no-streaming"]),
        ("10", ["--streaming", "--num_workers", "1"]),
    ):
        assert train.main([*SMALL, "--max_steps", steps, *how, "--savepath", "mixed", "--resume"]) == 0
    assert "stay on disk" not in capsys.readouterr().out
    for other in ("disk", "alone"):
        assert_same_run(Path("memory"), Path(other))
    a, b = (checkpoint.load(Path(run) / "last.pt") for run in ("memory", "mixed"))
    assert checkpoint.digest(a["model"]) == checkpoint.digest(b["model"]) and torch.equal(a["eps"], b["eps"])
    assert a["eps"].max() > 0 and not children()


def test_resume_refuses_other_images(folder, capsys):
    """As many, but one renamed: the radii, kept by number, would be of other images. A run of before does not say."""
    argv = [*SMALL, "--savepath", "run", "--resume", "--max_steps"]
    assert train.main([*argv, "3"]) == 0
    folder.rename("elsewhere")
    argv[argv.index("pictures")] = "elsewhere"
    assert train.main([*argv, "4"]) == 0
    before = Path("run/last.pt").read_bytes()
    Path("elsewhere/train/ant/000.png").rename("elsewhere/train/ant/zebra.png")
    fails_after_progress(capsys, [*argv, "6"], "error: --resume: run was trained on other images", "restore the data")
    assert Path("run/last.pt").read_bytes() == before
    state = checkpoint.load(Path("run/last.pt"))
    del state["listing"]
    checkpoint.save(Path("run/last.pt"), state)
    assert train.main([*argv, "6"]) == 0


def test_chosen_by_size(folder, capsys, monkeypatch):
    """Where the images would take more than half of what is free; said in a line."""
    size = (36 + 12) * 3 * 12 * 12
    monkeypatch.setattr(datasets, "free_memory", lambda device: 2 * size)
    assert not load(folder, streaming=None).streamed
    monkeypatch.setattr(datasets, "free_memory", lambda device: 2 * size - 1)
    assert load(folder, streaming=None).streamed and not load(folder, streaming=False).streamed
    assert train.main([*SMALL, "--max_steps", "1", "--savepath", "run"]) == 0
    out = [line for line in capsys.readouterr().out.splitlines() if "stay on disk" in line]
    assert len(out) == 1 and out[0].startswith("--streaming: ")
    assert train.main([*SMALL, "--max_steps", "1", "--no-streaming", "--savepath", "memory"]) == 0
    assert "stay on disk" not in capsys.readouterr().out
    assert 0 < streaming.free_memory(CPU) < 2**50


def test_the_flags():
    folder = ["--dataset", "imagefolder", "--norm", "L2", "--hinge_maxeps", "1"]
    for flags, value in (([], None), (["--streaming"], True), (["--no-streaming"], False)):
        config, _ = parse_train([*folder, *flags])
        assert config.streaming is value and config.num_workers == 2
        assert stored_config(config.to_dict()) == config
    for wrong in ({"streaming": 1}, {"streaming": "yes"}, {"num_workers": True}, {"num_workers": None}):
        with pytest.raises(UserError, match="stored config"):
            stored_config({**config.to_dict(), **wrong})


def test_only_image_folders_stream(capsys, tmp_path):
    digits = ["--dataset", "digits", "--norm", "L2", "--hinge_maxeps", "1", "--max_steps", "1"]
    fails(capsys, train.main, [*digits, "--savepath", tmp_path / "run", "--streaming"], "--streaming: digits")
    found = load_dataset(Source("digits", streaming=None), Sizes(val=100), seed=0, device=CPU)
    assert not found.streamed


@pytest.mark.parametrize("pause", [0, 0.5])
def test_a_killed_worker_is_named_in_one_line(folder, pause):
    """Noticed by a batch that does not come, or before by a signal, wherever that finds the program."""
    split = load(folder, 2).train
    with (
        pytest.raises(UserError, match="--num_workers: a process that reads images was lost"),
        TrainBatches(split, batch_size=8, seed=0, augment=None) as batches,
    ):
        batches(0)
        os.kill(int(children()[0]), signal.SIGKILL)
        time.sleep(pause)
        for step in range(1, 50):
            batches(step)
    assert not children()


def started(tmp_path):
    """A long run in a process group of its own, once it has written its second row, and its workers."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SMALL, "--streaming", "--max_steps", "100000", "--savepath", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    metrics = tmp_path / "run" / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    workers = children(process.pid)
    assert len(workers) >= 2
    return process, workers


def test_a_signal_to_the_whole_process_group(tmp_path, folder):
    """The step is finished and saved, the exit status is 143, and no process is left."""
    process, _ = started(tmp_path)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and re.search(r"go on with: \S*python", out) and "Traceback" not in err, err
    assert err.count("stopping after this step") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] > 0


def test_a_killed_run_leaves_no_worker_and_no_lock(tmp_path, folder):
    process, workers = started(tmp_path)
    process.kill()
    process.wait()  # not for its pipes, which the workers would hold open
    process.stdout.close(), process.stderr.close()
    deadline = time.monotonic() + 2  # a worker looks for its parent by itself every 5 s
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.02)
    assert not any(map(alive, workers))
    deadline = time.monotonic() + 10  # one that was just being forked notices later
    while time.monotonic() < deadline:
        with suppress(UserError):
            return RunFolder(tmp_path / "run").lock()
        time.sleep(0.1)
    raise AssertionError("the folder is still locked")


def alive(pid):
    """Not ended, not a zombie that nobody waits for."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_several_processes_from_disk(tmp_path, folder):
    """Their workers end after each check, which is no signal to stop."""
    argv = [*SMALL, "--streaming", "--data_root", str(folder), "--max_steps", "12", "--savepath"]
    found = ranks.in_processes(2, ranks.train_impatient, [*argv, str(tmp_path / "disk")])
    assert [status for status, _ in found] == [0, 0], found
    argv[argv.index("--streaming")] = "--no-streaming"
    assert [status for status, _ in ranks.in_processes(2, ranks.train, [*argv, str(tmp_path / "memory")])] == [0, 0]
    states = [checkpoint.load(tmp_path / name / "last.pt") for name in ("disk", "memory")]
    for key in ("model", "optimizer", "eps"):
        assert checkpoint.digest(states[0][key]) == checkpoint.digest(states[1][key])
