"""What a cluster does to a run, done for real: processes killed, files damaged, limits hit, numbers not finite."""

import re
import resource
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

import ranks
from command_lines import SMALL, rows
from losses import cross_entropy
from pgd import pgd
from processes.signals import StopSignals
from ranks import Started
from records import checkpoint
from tiny_runs import Memory, Sometimes, tiny_trainer
from training.guard import NotFinite

RUN = [*SMALL, "--max_steps", "14", "--save_interval", "0.0001"]


def content(folder):
    """What a run leaves, but for its speed."""
    state, best = checkpoint.load(folder / "last.pt"), checkpoint.load(folder / "model_best.pt")
    parts = {key: checkpoint.digest(value) for key, value in state.items() if key != "config"}
    return {
        **parts,
        "best": checkpoint.digest(best["model"]),
        "rows": rows(folder),
        "margins": np.load(folder / "margins.npy").tobytes(),
    }


def start(folder, *more):
    return Started(ranks.train_alone, [*RUN, "--savepath", folder, "--resume", *more])


def running(folder, *more, at=3):
    """A run that has written so many rows."""
    started = start(folder, *more)
    started.wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= at)
    return started


def go_on(folder, *more):
    started = start(folder, *more)
    assert started.join() == 0, started.text
    return started.text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    go_on(folder)
    return content(folder)


PLACES = {"step": (1, 9), "check": (1, 4), "fsync": (1, 20, 30), "link": (3,), "save": (12,), "rows": (3, 11)}
PLACES |= {"before the replace": (11, 25), "after the replace": (11, 26)}


@pytest.mark.parametrize(("place", "count"), [(place, count) for place in PLACES for count in PLACES[place]])
def test_killed_anywhere_it_goes_on_as_if_undisturbed(tmp_path, undisturbed, place, count):
    folder = tmp_path / "run"
    killed = Started(ranks.train_until, [*RUN, "--savepath", folder, "--resume"], place, count)
    assert killed.join() == -signal.SIGKILL, killed.text
    go_on(folder)
    assert content(folder) == undisturbed
    assert not list(folder.glob(".*.tmp")), "no stray temporary file"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_stopped_within_a_check(tmp_path, undisturbed, number):
    folder = tmp_path / "run"
    started = running(folder, "--eval_batch_size", "1", at=2)  # a check follows
    ranks.os.kill(started.process.pid, number)
    began = time.monotonic()
    assert started.join() == 128 + number, started.text
    assert time.monotonic() - began < 30
    assert re.search(r"go on with: \S*python", started.text) and "--resume" in started.text
    go_on(folder, "--eval_batch_size", "1")
    assert content(folder)["eps"] == undisturbed["eps"] and content(folder)["model"] == undisturbed["model"]


@pytest.mark.parametrize(("before", "stops"), [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_under_nohup_a_closed_terminal_stops_nothing(before, stops):
    own = signal.signal(signal.SIGHUP, before)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop() is stops
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, own)


def test_a_second_signal_ends_at_once(tmp_path):
    started = Started(ranks.train_slowly, [*RUN, "--savepath", tmp_path / "run"], 60.0)
    started.wait_for(lambda: "in a step" in started.text)
    started.process.terminate()
    started.wait_for(lambda: "stopping after this step" in started.text)
    began = time.monotonic()
    time.sleep(2.1)  # what comes sooner is the launcher's echo
    started.process.terminate()
    assert started.join() == -signal.SIGTERM and time.monotonic() - began < 10


def limited(started, size):
    """As a full disk: no file of the process may grow beyond `size` bytes."""
    resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full(started, folder, is_so):
    limited(started, 100 if is_so else resource.RLIM_INFINITY)


def read_only(started, folder, is_so):
    folder.chmod(0o500 if is_so else 0o700)


BLOCKS = [  # of TensorBoard its events are given up, the run is not
    (full, ranks.train_alone, []),
    (full, ranks.train_alone, ["--tensorboard"]),
    (read_only, ranks.train_without_root_powers, []),
]


@pytest.mark.parametrize(("block", "train", "flags"), BLOCKS)
def test_what_cannot_be_written_for_a_while(tmp_path, undisturbed, block, train, flags):
    folder = tmp_path / "run"
    started = Started(train, [*RUN, "--savepath", folder, *flags])
    started.wait_for(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) >= 3)
    block(started, folder, True)
    started.wait_for(lambda: "cannot be written" in started.text)
    before, written = checkpoint.load(folder / "last.pt"), len(rows(folder))  # whole
    started.wait_for(lambda: "step 8, val" in started.text)
    assert checkpoint.load(folder / "last.pt")["step"] == before["step"]
    assert len(rows(folder)) == written or block is read_only, "what is open can be written on in a folder that is not"
    block(started, folder, False)
    assert started.join() == 0, started.text
    assert "written again" in started.text and content(folder) == undisturbed


def test_a_disk_full_to_the_end(tmp_path, undisturbed):
    folder = tmp_path / "run"
    started = running(folder)
    limited(started, 100)
    assert started.join() == 4, started.text
    last = started.text.strip().splitlines()[-1]
    assert last.startswith("error: ") and "could not be written" in last and "--resume" in last
    assert 0 < checkpoint.load(folder / "last.pt")["step"] < 14
    go_on(folder)
    assert content(folder) == undisturbed


def test_a_disk_full_from_the_beginning(tmp_path):
    started = Started(ranks.train_limited, [*RUN, "--savepath", tmp_path / "run"], 100)
    assert started.join() == 2
    assert started.text.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in started.text
    go_on(tmp_path / "run")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_failed_save_keeps_both_earlier_states(tmp_path, damaged):
    """And never makes a damaged state the previous one."""
    run = tmp_path / "run"
    go_on(run)
    if damaged:
        (run / "last.pt").write_bytes(b"damaged")
    before = [(run / name).read_bytes() for name in ("last.pt", "last.prev.pt")]
    assert before[0] != before[1]
    flags = [*RUN, "--max_steps", "16", "--resume", "--savepath", run]
    assert Started(ranks.train_limited, flags, 10_000).join() != 0
    names = ("last.damaged.pt", "last.prev.pt") if damaged else ("last.pt", "last.prev.pt")
    assert [(run / name).read_bytes() for name in names] == before


DAMAGES = {
    "empty": lambda raw: b"",
    "html": lambda raw: b"<!DOCTYPE html><html><body>404</body></html>",
    "truncated": lambda raw: raw[: len(raw) // 2],
    "flipped": lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, undisturbed, damage):
    folder = tmp_path / "run"
    assert Started(ranks.train_until, [*RUN, "--savepath", folder], "step", 9).join() == -signal.SIGKILL
    raw = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(DAMAGES[damage](raw))
    said = go_on(folder)
    assert "warning: checkpoint" in said and "last.prev.pt" in said
    assert content(folder) == undisturbed
    (tmp_path / "named.pt").write_bytes(DAMAGES[damage](raw))
    new = [*RUN, "--savepath", tmp_path / "new", "--pretrained", tmp_path / "named.pt"]
    for program, argv in (("train", new), ("evaluate_on_pgd_attacks", ["--model", tmp_path / "named.pt"])):
        named = Started(ranks.program, program, argv)
        assert named.join() == 2
        assert "named.pt" in named.text.strip().splitlines()[-1] and "Traceback" not in named.text
    assert not (tmp_path / "new").exists()


def trainer_of(network, **changes):
    """On images of which none is bright anywhere, four batches an epoch; and these images."""
    torch.manual_seed(0)
    trainer = tiny_trainer(model=network(), **changes)
    trainer.data.train.numbers.add_(100)
    return trainer, trainer.data.train.images.clamp_(max=200)


def everything(trainer):
    state = trainer.state()
    return checkpoint.digest([state[key] for key in ("model", "optimizer", "eps", "sums")])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(optimizer):
    trainer, images = trainer_of(Sometimes, optimizer=optimizer, lr=((0, 1e-2),))
    images[5, 0, 0, 0] = 255
    bad = next(step for step in range(4) if 5 in trainer.batches.global_rows(step))
    for step in range(8):
        before = everything(trainer)
        trainer.train_step()
        assert trainer.step == step + 1
        if step % 4 == bad and step < 4:
            assert everything(trainer) == before or step == 0
            assert int(trainer.guard.since_row) == 1
        elif step < 4:
            assert everything(trainer) != before
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert trainer._train_row(1.0)["skipped_steps"] == 2 and int(trainer.guard.last) == -1


class Idle(Sometimes):
    """One weight is huge and has no part in the output."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.tensor(1e34))

    def forward(self, x):
        return super().forward(x) + 0 * self.idle


def test_weights_that_overflow_are_not_saved():
    """Loss and gradient are finite, the new weight is not."""
    for changes in (
        {"optimizer": "sgd", "lr": ((0, 1.0),), "weight_decay": 1e10},
        {"optimizer": "adam", "lr": ((0, 1e-3),), "weight_decay": 1e9},
        {"optimizer": "sgd", "lr": ((0, 1e6),), "momentum": 1e28, "weight_decay": 1e-4},
    ):
        (trainer, _), memory = trainer_of(Idle, **changes), Memory()
        trainer._save(memory)
        with pytest.raises(NotFinite):
            for _ in range(8):
                trainer.train_step()
                trainer._save(memory)
        for state in memory.states:
            assert all(value.isfinite().all() for value in state["model"].values())


class Masked(Sometimes):
    """With a buffer that is meant to be infinite."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))


def test_a_buffer_that_is_infinite_by_design_is_no_fault():
    trainer, _ = trainer_of(Masked)
    trainer.train_step()
    assert int(trainer.guard.in_a_row) == 0


def test_three_in_a_row_end_the_run_naming_steps_and_images():
    trainer, images = trainer_of(Sometimes, disp_interval=8)
    for step in (1, 2, 3):
        images[trainer.batches.global_rows(step)[0], 0, 0, 0] = 255
    numbers = sorted(100 + int(trainer.batches.global_rows(step)[0]) for step in (1, 2, 3))
    for _ in range(5):  # on after the third, as the host looks later
        trainer.train_step()
    said = f"steps 2, 3, 4 were not finite: training images {', '.join(map(str, numbers))}$"
    for read in (lambda: trainer._train_row(1.0), lambda: trainer._save(None)):
        with pytest.raises(NotFinite, match=said):
            read()
    stopped, images = trainer_of(Sometimes)
    for step in (1, 2, 3):
        images[stopped.batches.global_rows(step)[0], 0, 0, 0] = 255
    for _ in range(3):
        stopped.train_step()
    resumed, others = trainer_of(Sometimes)
    others.copy_(images)
    resumed.restore(stopped.state())
    resumed.train_step()
    with pytest.raises(NotFinite, match=said):
        resumed._train_row(1.0)


def test_a_run_of_such_steps_ends_with_status_3(tmp_path):
    """A learning rate that overflows every weight."""
    folder = tmp_path / "run"
    started = Started(ranks.train_alone, [*RUN, "--lr", "1e30", "--optimizer", "sgd", "--savepath", folder])
    assert started.join() == 3, started.text
    assert "were not finite" in started.text
    state = checkpoint.load(folder / "last.pt")
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gradient_that_is_not_a_number_spoils_its_own_image_alone(norm):
    class Kink(nn.Module):
        """The gradient of one image is not a number, its output is."""

        def forward(self, x):
            odd = (x - 0.5).flatten(1)[:, :1]
            return x.flatten(1)[:, :3] + torch.where(odd == 0, (odd * odd).sqrt(), 0)

    x = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(1)) * 0.4
    spoiled = x.clone()
    spoiled[2, 0, 0, 0] = 0.5
    y = torch.tensor([0, 1, 2, 0])
    settings = {"loss_fn": cross_entropy, "norm": norm, "eps": 0.1, "step_size": 0.03, "steps": 4}
    (gradient,) = torch.autograd.grad(Kink()(spoiled.requires_grad_()).sum(), spoiled)
    assert gradient[2].isnan().any() and not gradient[[0, 1, 3]].isnan().any()
    plain, found = pgd(Kink(), x, y, **settings), pgd(Kink(), spoiled.detach(), y, **settings)
    assert found.isfinite().all()
    assert torch.equal(found[[0, 1, 3]], plain[[0, 1, 3]])
