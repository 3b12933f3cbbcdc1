"""On a real GPU, and skipped without one: recordings against plain passes, waiting counted by torch, every flag of a start."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import hubconf
import train
from command_lines import SMALL
from config import PRESETS
from hardware.fast_pgd import FastPgd
from hardware.layout import lay_out, layout_for
from loading.batches import Split
from loading.datasets import Dataset
from losses import cross_entropy
from networks.build import build_model
from pgd import pgd
from trainer import Trainer
from utils import use_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
NETWORKS = {"lenet5": ("mnist", (1, 28, 28)), "wrn28_4": ("cifar10", (3, 32, 32))}


def trainer_of(network, **changes):
    dataset, shape = NETWORKS[network]
    device = torch.device("cuda", 0)
    config = replace(PRESETS[dataset, "Linf"], hinge_maxeps=0.3, batch_size=32, nb_iter=3, augment=False, **changes)
    torch.manual_seed(0)
    model = build_model(network, *shape, 10).to(device)
    lay_out(model, True, layout_for(device, config.precision, config.deterministic))
    images = torch.randint(0, 256, (128, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images.to(device), (torch.arange(128) % 10).to(device), torch.arange(128, device=device))
    return Trainer(config, model, Dataset(split, split, split, 10))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_recorded_steps_follow_plain_ones(network, precision):
    recorded, plain = (trainer_of(network, precision=precision, cuda_graphs=graphs) for graphs in (True, False))
    for _ in range(3):
        found, expected = recorded.train_step(), plain.train_step()
    torch.testing.assert_close(found.clean_loss, expected.clean_loss, rtol=2e-2, atol=1e-3)
    assert int(recorded.guard.since_row) == 0


def test_the_mnist_step_never_waits():
    trainer = trainer_of("lenet5")
    for _ in range(3):
        trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("network", NETWORKS)
def test_recorded_pgd_is_pgd(network):
    trainer = trainer_of(network)
    x, y, _ = trainer.data.train.everything()
    model = copy.deepcopy(trainer.model).eval()
    how = {"loss_fn": cross_entropy, "norm": "L2", "eps": 0.5, "step_size": 0.1, "steps": 10}
    how["noise"] = torch.rand_like(x)
    found, plain = (run(model, x, y, **how) for run in (FastPgd(model, "fp32", rows=128), pgd))
    torch.testing.assert_close(found, plain, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    "flags", [["auto"], ["cuda"], ["cuda:0"], ["cuda", "--deterministic"], ["cuda", "--no-cuda_graphs"]]
)
def test_train_starts_and_resumes(flags, tmp_path):
    argv = [*SMALL, "--max_steps", "4", "--savepath", str(tmp_path / "run"), "--device", *flags]
    assert train.main(argv) == 0 and train.main([*argv, "--max_steps", "6", "--resume"]) == 0


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_gpu_is_always_named_with_its_number(name):
    assert use_device(name, deterministic=False) == torch.device("cuda", 0)


def test_the_hub_measures_as_on_the_cpu():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(20, 1, 8, 8)
    y = model(x).argmax(1)
    measures = hubconf.robust_accuracy("Linf", 0.05, steps=5, restarts=2), hubconf.margins("Linf", 0.3, steps=5)
    on_cpu = [measure(model, x, y) for measure in measures]
    on_gpu = [measure(model.cuda(), x.cuda(), y.cuda()) for measure in measures]
    assert torch.equal(on_cpu[0].flags, on_gpu[0].flags.cpu()) and 0 < on_cpu[0].accuracy < 1
    torch.testing.assert_close(on_cpu[1].eps, on_gpu[1].eps.cpu(), rtol=1e-3, atol=1e-4)
