"""The guard as a GPU runs it: nothing is read, a fused optimizer leaves the step out, and it does what reading everything does."""

import pytest
import torch

from hardware.optimizer import make_optimizer
from records.checkpoint import digest
from tiny_runs import Sometimes, tiny_trainer
from training.guard import all_finite


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_without_reading_it_does_the_same(optimizer, share):
    """Over steps that count and steps that are left out, the first among them; a fused optimizer as GPUs have it."""
    found = []
    for reads_are_free in (True, False):
        torch.manual_seed(0)
        model = Sometimes()
        trainer = tiny_trainer(model=model, optimizer=optimizer)
        bright = torch.rand(len(trainer.data.train), generator=torch.Generator().manual_seed(3)) < share
        trainer.data.train.images[:, :, 0, 0] = torch.where(bright, 255, 100)[:, None].to(torch.uint8)
        guard = trainer.guard
        guard.reads_are_free = reads_are_free
        rates = {"lr": 0.01, "momentum": 0.9}
        trainer.optimizer = guard.optimizer = make_optimizer(optimizer, model, fused=True, **rates)
        before = digest([*model.state_dict().values()])
        for _ in range(9):
            trainer.train_step()
        assert (before == digest([*model.state_dict().values()])) == (share == 1)
        counts = [guard.examples.tolist(), int(guard.last), int(guard.in_a_row), int(guard.since_row)]
        found.append((trainer.state(), counts))
    (plain, counts), (unread, other_counts) = found
    assert counts == other_counts and counts[-1] == {0.0: 0, 0.3: counts[-1], 1.0: 9}[share]
    assert share != 0.3 or 0 < counts[-1] < 9
    for key in ("model", "eps", "sums", "skipped"):
        assert digest(plain[key]) == digest(unread[key]), key
    if share < 1:
        assert digest(plain["optimizer"]["state"]) == digest(unread["optimizer"]["state"])


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_one_odd_value_in_any_tensor_is_seen(odd):
    tensors = [torch.randn(3, 4), torch.arange(5), torch.empty(0), torch.randn(2, 3, dtype=torch.float64).T]
    assert all_finite(tensors) and all_finite([]) and all_finite([torch.arange(3)])
    for number in (0, 3):
        changed = [tensor.clone() for tensor in tensors]
        changed[number][1, 1] = odd
        assert not all_finite(changed)
