"""Several processes against one: the same examples, starts, gradients, radii, flags; runs continued on another number.

The processes are forked from a server and joined by gloo; torchrun itself is used in test_torchrun.py.
"""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import ranks
import train
from check import check_split
from config import PRESETS
from errors import UserError
from loading.batches import Split
from loading.datasets import Dataset, load_dataset
from networks.lenet import LeNet5Madry
from networks.resnets import PerImageStandardize, WideResNet
from processes.distributed import World, joined
from processes.global_batchnorm import GlobalBatchNorm, with_global_statistics
from ranks import in_processes
from records import checkpoint
from trainer import Trainer

pytestmark = pytest.mark.slow  # processes of their own, each of which imports torch

SIZES = (1, 2, 3)


def small_wrn(channels, height, width, num_classes):
    return nn.Sequential(PerImageStandardize(), WideResNet(10, 1, channels, num_classes))


WRN = f"{__name__}:small_wrn"
TINY = ["--dataset", "digits", "--norm", "Linf", "--hinge_maxeps", "0.3", "--device", "cpu", "--test_size", "40"]


@dataclass(frozen=True)
class Exact(Split):
    """Images in the dtype asked for."""

    dtype: torch.dtype = torch.float64

    def batch(self, index):
        batch = super().batch(index)
        return batch._replace(x=self.images[batch.index].to(self.dtype) / 255)


def digits(dtype):
    data = load_dataset("digits", val_size=200, test_size=60, seed=0, device=torch.device("cpu"))
    return data._replace(train=Exact(*vars(data.train).values(), dtype), val=Exact(*vars(data.val).values(), dtype))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Networks that have most examples right, by name of the network."""
    folder = tmp_path_factory.mktemp("trained")
    for name, network in (("lenet5", "lenet5"), ("wrn", WRN)):
        flags = ["--method", "std", "--network", network, "--max_steps", "120", "--lr", "2e-3"]
        argv = [*TINY[:4], *TINY[6:], *flags, "--savepath", str(folder / name)]
        ((status, said),) = in_processes(1, ranks.quietly, "train", argv)
        assert status == 0, said
    return folder


def trainer_here(world, folder, name, dtype, changes):
    """From the trained network."""
    model = {"lenet5": LeNet5Madry, "wrn": small_wrn}[name](1, 8, 8, 10)
    model.load_state_dict(checkpoint.load(folder / name / "last.pt")["model"])
    preset = PRESETS["digits", changes.get("norm", "Linf")]
    config = replace(preset, **{"hinge_maxeps": 0.3, "method": "mma", **changes})
    trainer = Trainer(config, model.to(dtype), digits(dtype), world)
    trainer.eps = trainer.eps.to(dtype)
    return trainer


def step_here(folder, name, dtype, changes):
    """In one of several processes: a step; what it saw, its gradient, running statistics."""
    with joined("cpu") as world:
        trainer = trainer_here(world, folder, name, dtype, changes)
        result = trainer.train_step()
        return {
            "result": [value.clone() for value in result if value is not None],
            "gradients": [p.grad.clone() for p in trainer.parameters],
            "buffers": {k: v.clone() for k, v in trainer.model.named_buffers()},
            "weights": {k: v.clone() for k, v in trainer.model.state_dict().items()},
            "eps": trainer.eps.clone(),
        }


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lenet5", {}),
        ("lenet5", {"step_decay": True, "odi_steps": 2}),
        ("wrn", {}),
        ("wrn", {"clean_loss_coeff": 0.0, "method": "omma"}),
        ("wrn", {"norm": "L2", "hinge_maxeps": 1.5}),
        ("wrn", {"method": "trades", "train_eps": 0.1}),
        ("wrn", {"method": "pgd", "train_eps": 0.02}),
        ("wrn", {"method": "std", "clean_loss_coeff": 1.0}),
        ("wrn", {"batch_size": 2}),
        ("wrn", {"search_mode": "eval"}),
    ],
)
def test_one_step_in_float64_is_that_of_one_process(trained, name, changes):
    plain, *several = (in_processes(size, step_here, trained, name, torch.float64, changes) for size in SIZES)
    assert plain[0]["result"][1] / len(plain[0]["result"][4]) > 0.7 or changes.get("batch_size"), "most must be right"
    for found in (process for processes in several for process in processes):
        for ours, theirs in zip(found["gradients"], plain[0]["gradients"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
        for ours, theirs in zip(found["result"], plain[0]["result"], strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=1e-8)
        torch.testing.assert_close(found["eps"], plain[0]["eps"], rtol=0, atol=1e-8)
        for key, value in plain[0]["buffers"].items():
            torch.testing.assert_close(found["buffers"][key], value, rtol=0, atol=1e-8)
    for processes in several:
        for key, value in processes[0]["weights"].items():
            assert all(torch.equal(other["weights"][key], value) for other in processes), "all end with the same bits"


def batchnorm_here(rows, shape):
    """Slices of unequal size, one of them empty: output, gradients, running statistics."""
    with joined("cpu") as world:
        model = with_global_statistics(batchnorm_over(shape), torch.device("cpu"))
        assert type(model[0]) is GlobalBatchNorm
        x = inputs(shape)[sum(rows[: world.rank]) : sum(rows[: world.rank + 1])].requires_grad_()
        out = passed(model, x)
        return out, x.grad, [world.total(p.grad) for p in model.parameters()], dict(model.named_buffers())


def passed(model, x):
    """The output, after a backward that treats channels unlike."""
    out = model(x)
    (out * torch.arange(out.shape[1]).view(1, -1, *[1] * (out.dim() - 2)).sin()).square().sum().backward()
    return out.detach()


def batchnorm_over(shape):
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    model = nn.Sequential(kind(shape[1], momentum=0.3)).double()
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(4))
        model[0].bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(5))
    return model


def inputs(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 3 + 10


def far_from_zero_here():
    with joined("cpu") as world:
        model = with_global_statistics(nn.BatchNorm1d(2, momentum=1.0), torch.device("cpu"))
        out = model(far_from_zero()[world.rank :: world.size])
        return out.detach(), model.running_var.clone()


def far_from_zero():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(7)) * 0.01 + 1000
    x[:, 1] = 1000.1
    return x


def test_batchnorm_far_from_zero_in_float32():
    """A sum of squares in float32 would leave nothing, or a variance below zero."""
    for out, variance in in_processes(2, far_from_zero_here):
        torch.testing.assert_close(variance[0], far_from_zero()[:, 0].double().var().float(), rtol=1e-3, atol=0)
        assert (variance >= 0).all() and out.isfinite().all() and 0.5 < out[:, 0].std() < 2


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (7, 5, 3, 2)])
def test_batchnorm_over_processes_is_batchnorm_of_the_whole_batch(shape):
    x = inputs(shape).requires_grad_()
    model = batchnorm_over(shape)
    out = passed(model, x)
    for rows in ((4, 3), (5, 0, 2)):
        found = in_processes(len(rows), batchnorm_here, rows, shape)
        torch.testing.assert_close(torch.cat([f[0] for f in found]), out, rtol=0, atol=1e-10)
        torch.testing.assert_close(torch.cat([f[1] for f in found]), x.grad, rtol=0, atol=1e-10)
        for _, _, gradients, buffers in found:
            for ours, p in zip(gradients, model.parameters(), strict=True):
                torch.testing.assert_close(ours, p.grad, rtol=0, atol=1e-10)
            for key, value in model.named_buffers():
                torch.testing.assert_close(buffers[key], value, rtol=0, atol=1e-12)


def check_here(folder):
    with joined("cpu") as world:
        model = small_wrn(1, 8, 8, 10)
        model.load_state_dict(checkpoint.load(folder / "wrn" / "last.pt")["model"])
        config = replace(PRESETS["digits", "Linf"], hinge_maxeps=0.3, eval_batch_size=30)
        return tuple(check_split(model, digits(torch.float32).val, config, 0, 1, world=world))


def test_the_check_gives_every_image_the_same(trained):
    (plain,), *several = (in_processes(size, check_here, trained) for size in SIZES)
    for found in (process for processes in several for process in processes):
        assert found[:2] == plain[:2]
        assert torch.equal(found[2], plain[2])


def run(size, folder, *more, steps=50):
    argv = [*TINY, "--max_steps", str(steps), "--disp_interval", "10", "--savepath", str(folder), *more]
    found = in_processes(size, ranks.quietly, "train", argv)
    assert all(status == 0 for status, _ in found), found
    return checkpoint.load(folder / "last.pt")


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, first, then):
    whole = run(1, tmp_path / "whole", steps=34)
    run(first, tmp_path / "parts", steps=30)
    state = run(then, tmp_path / "parts", "--resume", steps=34)
    assert state["step"] == 34
    assert state["eps"].double().mean().item() == pytest.approx(whole["eps"].double().mean().item(), rel=0.02)
    for key, value in whole["model"].items():
        assert (state["model"][key] - value).norm() <= 0.02 * value.norm()
    margins = np.load(tmp_path / "parts" / "margins.npy")
    assert len(margins) == 3  # after the first epoch (24 steps), at 30 and at 34
    found = []
    for name in ("whole", "parts"):
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        found.append([row for row in rows if row["kind"] == "train"])
        assert [row["step"] for row in found[-1]] == [10, 20, 30, 34]
    seen = [
        [row[key] for key in ("clean_loss", "clean_acc", "mma_loss", "mean_eps")]
        for row in (rows[-1] for rows in found)
    ]
    assert seen[1] == pytest.approx(seen[0], rel=0.02)


# What `--recipe fast` sets for CIFAR-10.
RECIPE = """
    --network small_resnet --augment --keep_directions --refresh_interval 3 --rest_interval 3 --search secant
    --num_search_steps 4 --search_mode eval --nb_iter 2 --one_cycle --cycle_steps 34 --lr 0.01
    --best_by robust_acc --precision bf16_all --check_nb_iter 4
"""


@pytest.mark.parametrize(("size", "flags"), [(2, ""), (3, ""), (1, RECIPE), (2, RECIPE)])
def test_a_run_on_several_processes_is_resumed_bit_for_bit(tmp_path, size, flags):
    """In mid-epoch, at step 30 of 24 a epoch."""
    flags = flags.split()
    whole = run(size, tmp_path / "whole", *flags, steps=34)
    run(size, tmp_path / "parts", *flags, steps=30)
    parts = run(size, tmp_path / "parts", *flags, "--resume", steps=34)
    for key in ("model", "optimizer", "eps", *(("directions",) if flags else ())):
        assert checkpoint.digest(parts[key]) == checkpoint.digest(whole[key]), key
    if flags:
        assert whole["directions"]["scale"].gt(0).any() and whole["eps"].gt(0).any()


def test_local_batchnorm_ends_alike_everywhere(trained):
    a, b = in_processes(2, step_here, trained, "wrn", torch.float64, {"local_bn": True})
    (plain,) = in_processes(1, step_here, trained, "wrn", torch.float64, {})
    for key, value in a["weights"].items():
        assert torch.equal(value, b["weights"][key])
    assert not all(torch.allclose(a["buffers"][k], v) for k, v in plain["buffers"].items()), "statistics are of a slice"


EVALUATIONS = {
    "pgd": ("evaluate_on_pgd_attacks", "--nb_iter 5 --nb_restart 4 --eps 0.05 0.1 --test_size 100"),
    "autoattack": ("evaluate_on_autoattack", "--attacks apgd-ce --test_size 30 --eps 0.1"),
    "square": ("evaluate_on_gradient_free_attacks", "--attacks square --test_size 30 --eps 0.3 --square_queries 20"),
    "ddn": ("evaluate_on_minimum_norm", "--norm L2 --attacks ddn --steps 20 --test_size 30"),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_give_every_image_the_same(tmp_path, trained, name):
    program, flags = EVALUATIONS[name]
    found = []
    for size in SIZES:
        folder = shutil.copytree(trained / "lenet5", tmp_path / str(size))
        argv = ["--model", str(folder), "--device", "cpu", "--batch_size", "10", *flags.split()]
        outputs = in_processes(size, ranks.quietly, program, argv)
        assert [status for status, _ in outputs] == [0] * size, outputs
        assert not any(said.strip() for _, said in outputs[1:]), "the first one speaks"
        (file,) = folder.glob("eval_*.json")
        results = json.loads(file.read_text())["results"]
        found.append([row.get("flags") or row["distances"] for row in results])
        assert not list(folder.glob("partial_*"))
    assert found[1] == found[0] and found[2] == found[0]
    assert name == "ddn" or ("0" in found[0][-1] and "1" in found[0][0])


def test_mistakes_are_said_once_and_end_all_alike(tmp_path, trained):
    for argv, said in (
        (["--model", str(tmp_path / "none.pt"), "--device", "cpu"], "none.pt"),
        (["--model", str(trained / "lenet5"), "--device", "cpu", "--misspelt"], "--misspelt"),
    ):
        found = in_processes(2, ranks.quietly, "evaluate_on_pgd_attacks", argv)
        assert [status for status, _ in found] == [2, 2]
        assert found[0][1].startswith("error: ") and said in found[0][1] and found[0][1].count("\n") == 1
        assert found[1][1] == ""


def test_what_one_process_alone_meets_is_said_by_it_and_ends_all(tmp_path):
    """The data set is missing on the second machine; the folder cannot be made by the first."""
    argv = [*TINY, "--max_steps", "3", "--savepath", str(tmp_path / "run")]
    found = in_processes(2, ranks.train_where_data_is_missing, argv)
    assert [status for status, _ in found] == [2, 2]
    assert "rank 1: data file gone" in found[0][1] and not (tmp_path / "run").exists()
    (tmp_path / "run").touch()
    (status, said), (other, nothing) = in_processes(2, ranks.quietly, "train", [*argv, "--quiet"])
    assert (status, other, nothing) == (2, 2, "") and said.startswith("error: ") and "run: File exists" in said


# --- what several processes cannot do --------------------------------------------------------------------------------


def of_size(images, batch_size, processes, network, **changes):
    """The refusal, if any, of so many images in such batches; no process is started."""
    numbers = torch.arange(images)
    split = Split(torch.zeros(images, 1, 8, 8, dtype=torch.uint8), 0 * numbers, numbers)
    config = replace(PRESETS["digits", "Linf"], batch_size=batch_size, **changes)
    try:
        train.check_batches(config, network(1, 8, 8, 10), Dataset(split, split, split, 10), World(0, processes))
    except UserError as error:
        return str(error)
    return ""


def vector_network(channels, height, width, num_classes):
    """BatchNorm on vectors cannot work on one image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes), nn.BatchNorm1d(num_classes))


def reading_network(channels, height, width, num_classes):
    """Cannot work on an empty batch."""

    class Reading(nn.Sequential):
        def forward(self, x):
            x[0]
            return super().forward(x)

    return Reading(nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(channels * height * width, num_classes))


@pytest.mark.parametrize(
    ("images", "batch_size", "processes", "network", "local_bn", "said"),
    [
        (1283, 128, 4, vector_network, True, "slice"),  # the last batch is of 3 images
        (1285, 128, 4, vector_network, True, "slice"),  # 2, 1, 1, 1
        (1288, 128, 4, vector_network, True, ""),
        (1280, 6, 4, vector_network, True, "slice"),
        (1283, 128, 4, vector_network, False, ""),
        (1281, 128, 1, vector_network, False, "last batch"),
        (1281, 128, 1, small_wrn, False, ""),
        (1280, 2, 3, small_wrn, False, "--batch_size 2: is the global batch, and there are 3 processes"),
        (1280, 128, 2, reading_network, False, "--local_bn"),  # all may be wrong in a process's slice
        (1280, 128, 2, reading_network, True, ""),
        (1281, 128, 2, reading_network, True, "choose another --batch_size"),
    ],
)
def test_batches_whose_slices_the_network_cannot_work_on_are_refused(
    images, batch_size, processes, network, local_bn, said
):
    found = of_size(images, batch_size, processes, network, local_bn=local_bn)
    assert said in found and bool(said) == bool(found), found


def idle_network(channels, height, width, num_classes):
    """A parameter has no part in the output."""

    class Idle(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.idle = nn.Parameter(torch.ones(3))

    return Idle(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


def test_parameters_without_a_part_in_the_output(tmp_path):
    run(2, tmp_path / "run", "--network", f"{__name__}:idle_network", steps=3)
