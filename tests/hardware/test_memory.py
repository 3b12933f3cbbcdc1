"""Out of memory for real: address space that is limited, in a process of its own, and a network that wants much of it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_pgd_attacks
import train
from command_lines import SMALL, fails, found_in, rows
from errors import UserError
from evaluations import shards, white_box_attack
from hardware.memory import BatchSize, out_of_memory
from linear_networks import Linear, fitted
from loading.datasets import load_dataset
from records import checkpoint
from support import ROOT

CPU = torch.device("cpu")
FLOATS_AN_IMAGE = 4_000_000  # 16 MB, that nothing is written into
ROOM = 250_000_000  # bytes: enough for 10 images, not for 40


class Greedy(Linear):
    def forward(self, x):
        torch.empty(len(x), FLOATS_AN_IMAGE)
        return super().forward(x)


class Endless(Linear):
    def forward(self, x):
        if x.requires_grad:
            torch.empty(len(x), 1 << 44)
        return super().forward(x)


NETWORK = ["--network", f"{__name__}:Greedy", "--device", "cpu"]
EVALUATE = [*NETWORK, "--test_size", "40"]
COMMANDS = {
    "pgd": (evaluate_on_pgd_attacks, [*EVALUATE, "--nb_iter", "5", "--nb_restart", "4", "--eps", "0.05", "0.1"]),
    "square": (evaluate_on_gradient_free_attacks, [*EVALUATE, "--attacks", "square", "--square_queries", "10"]),
    "fmn": (evaluate_on_minimum_norm, [*EVALUATE, "--attacks", "fmn", "--steps", "5"]),
}
TRAIN = [*SMALL, *NETWORK, "--batch_size", "5", "--max_steps", "2", "--lr", "1e-2"]


def limited():
    """Run by the other process: warm up, limit the address space, then run everything with batches of 40."""
    for folder in ("warm", "limited"):
        if folder == "limited":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + ROOM,) * 2)
        size = "5" if folder == "warm" else "40"
        for module, argv in COMMANDS.values():
            assert module.main(["--model", folder, *argv, "--batch_size", size]) == 0
        run = [*TRAIN, "--eval_batch_size", size, "--savepath", f"{folder}/run"]
        assert train.main(run) == 0


def make_network(folder, name="Greedy"):
    data = load_dataset("digits", val_size=200, seed=0, device=CPU)
    model = fitted(data.train.images, data.train.labels)
    config = {
        **train.parse_train(SMALL)[0].to_dict(),
        "network": f"{'linear_networks' if name == 'Linear' else __name__}:{name}",
        "eval_batch_size": 40,
    }
    if folder.name == "warm":
        config["eval_batch_size"] = 5
    folder.mkdir()
    checkpoint.save(folder / "model_best.pt", {"epoch": 1, "model": model.state_dict(), "config": config})


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """(folder, output): where the other process has done everything."""
    root = tmp_path_factory.mktemp("memory")
    for name in ("warm", "limited", "free"):
        make_network(root / name)
    code = f"import torch; torch.set_num_threads(1); import {__name__} as here; here.limited()"
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests" / "support"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return root, done.stdout + done.stderr


def result(folder, attack):
    return json.loads((folder / f"eval_{attack}_Linf.json").read_text())


@pytest.mark.parametrize("attack", COMMANDS)
def test_an_evaluation_goes_on_in_halves_to_the_same_flags(there, attack, monkeypatch):
    root, said = there
    monkeypatch.chdir(root)
    found = result(root / "limited", attack)
    size = found["settings"]["batch_size"]
    assert size in (5, 10, 20) and found["settings"]["batch_size_asked"] == 40
    assert f"out of memory: going on with {size} images a batch instead of 40 (--batch_size)" in said
    assert "Traceback" not in said
    module, argv = COMMANDS[attack]
    asked = size
    if attack == "square":  # a shard's draws are its own, so that of 40 has others than those of 10
        asked = 40

        def small(*given):
            batch = BatchSize(*given)
            batch.used = size
            return batch

        monkeypatch.setattr(shards, "BatchSize", small)
    assert module.main(["--model", "free", *argv, "--batch_size", str(asked)]) == 0
    assert found_in(root / "limited", attack) == found_in(root / "free", attack)


def test_the_check_in_training_goes_on_in_halves_to_the_same_rows(there, monkeypatch):
    root, said = there
    monkeypatch.chdir(root)
    found = [r for r in rows(root / "limited" / "run") if r["kind"] == "eval"]
    sizes = {row.pop("eval_batch_size") for row in found}
    assert sizes and sizes < {5, 10, 20}, sizes  # a later check may have to halve once more
    assert f"{min(sizes)} images a batch instead of 40 (--eval_batch_size)" in said
    assert train.main([*TRAIN, "--eval_batch_size", str(min(sizes)), "--savepath", "free/run"]) == 0
    assert [r for r in rows(root / "free" / "run") if r["kind"] == "eval"] == found


def test_resume_knows_an_evaluation_in_halves(there, monkeypatch, capsys):
    root, _ = there
    monkeypatch.chdir(root)
    for module, argv in COMMANDS.values():
        capsys.readouterr()
        assert module.main(["--model", "limited", *argv, "--batch_size", "40", "--resume"]) == 0
        assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize("attack", ["pgd", "fmn"])
def test_too_little_for_one_image_is_one_line(tmp_path, capsys, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    make_network(tmp_path / "endless", "Endless")
    module, argv = COMMANDS[attack]
    argv = [*argv, "--network", f"{__name__}:Endless", "--model", "endless"]
    fails(capsys, module.main, argv, " 1: memory does not suffice for one image", "--device")
    assert [path.name for path in (tmp_path / "endless").iterdir()] == ["model_best.pt"]


def test_which_errors_are_of_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)
    yes = (
        real.value,
        MemoryError(),
        torch.OutOfMemoryError(),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"),
        RuntimeError("CUDA error: out of memory"),
    )
    assert all(map(out_of_memory, yes))
    assert not any(map(out_of_memory, (RuntimeError("shape"), ValueError("out of memory"), KeyError("x"))))


def test_the_size_stays_halved_and_other_errors_pass():
    said, seen = [], []
    batch = BatchSize(12, "--batch_size", said.append)

    def work(size):
        seen.append(size)
        if size > 3:
            raise MemoryError
        return size

    assert batch.run(work) == batch.run(work) == 3 and seen == [12, 6, 3, 3] and len(said) == 2
    assert batch.as_settings() == {"batch_size": 3, "batch_size_asked": 12}
    assert BatchSize(7, "", print).as_settings() == {"batch_size": 7}
    with pytest.raises(RuntimeError, match="shape"):
        batch.run(lambda size: (_ for _ in ()).throw(RuntimeError("shape")))
    with pytest.raises(UserError, match="--batch_size 1: memory"):
        batch.run(lambda size: (_ for _ in ()).throw(MemoryError))


class Later(Linear):
    """Memory runs out in mid-attack: from the 60th pass on no more than 10 images fit."""

    passes = 0

    def forward(self, x):
        Later.passes += 1
        if Later.passes > 60 and len(x) > 10:
            torch.empty(1 << 50)
        return super().forward(x)


def test_pgd_goes_on_after_its_last_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("Later", "Linear"):
        make_network(tmp_path / name, name)
    begun, go_on = [], white_box_attack.go_on

    def counted(model, images, protocol, course, *rest):
        begun.append((protocol.eps, course.restart, bool(course.attacked.any())))
        return go_on(model, images, protocol, course, *rest)

    monkeypatch.setattr(white_box_attack, "go_on", counted)
    argv = [*COMMANDS["pgd"][1], "--batch_size", "40", "--nb_restart", "6", "--save_adv"]
    assert evaluate_on_pgd_attacks.main([*argv, "--model", "Later", "--network", f"{__name__}:Later"]) == 0
    assert "going on with 10 images" in capsys.readouterr().out
    assert begun[0] == (0.05, 0, False) and any(restart or within for _, restart, within in begun[1:]), begun
    monkeypatch.setattr(white_box_attack, "go_on", go_on)
    assert evaluate_on_pgd_attacks.main([*argv, "--model", "Linear", "--network", "linear_networks:Linear"]) == 0
    assert found_in(tmp_path / "Later") == found_in(tmp_path / "Linear")


def test_of_several_processes_one_attacks_its_batch_in_parts():
    """The same images as at once; said, and remembered for the next batch."""
    said, sizes = [], []

    def attack(model, x, y, *, eps, noise):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x + y[:, None] + eps + noise

    batch = BatchSize(8, "--batch_size", said.append)
    x, y, noise = torch.rand(7, 2), torch.arange(7), torch.rand(7, 2)
    in_parts = batch.attack(attack)
    for _ in range(2):
        found = in_parts(None, x, y, eps=0.5, noise=noise)
        assert torch.equal(found, x + y[:, None] + 0.5 + noise)
    assert sizes == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1] and len(said) == 2 and batch.used == 2
    assert len(in_parts(None, x[:0], y[:0], eps=0.5, noise=noise[:0])) == 0
