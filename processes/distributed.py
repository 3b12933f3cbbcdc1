"""Several processes as one run: what torchrun started, and each one's share of the work.

Every process holds the whole network and all radii; of a global batch it has a slice of consecutive rows.
Alone (`ALONE`), every method is what it would be without other processes, and nothing is sent.
"""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.rendezvous import rendezvous

from errors import UserError, remedy
from utils import use_device

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class SharedError(UserError):
    """The same on every process: one of them says it."""


class World(NamedTuple):
    """The processes of one run. Each method is called by all of them, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's rows of a global batch of `count`; none where there are more processes than rows."""
        smallest, more = divmod(count, self.size)
        start = self.rank * smallest + min(self.rank, more)
        return slice(start, start + smallest + (self.rank < more))

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest over the processes; between hosts, so that no device is waited for."""
        if self.size == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return int(values)

    def collector(self) -> Callable[[dict[K, V]], dict[K, V]]:
        """What puts the dicts of all processes together on the first, and gives each other one its own back.

        It waits for the last one, however long that takes: elsewhere a wait of half an hour is taken for a failure.
        """
        if self.size == 1:
            return lambda own: own
        group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(days=100)))

        def collect(own: dict[K, V]) -> dict[K, V]:
            found: list[dict[K, V]] | None = [{}] * self.size if self.is_first else None
            dist.gather_object(own, found, group=group)
            return own if found is None else {key: value for one in found for key, value in one.items()}

        return collect

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these with those of the first process."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, 0)

    def together(self, work: Callable[[], T]) -> T:
        """`work()` on every process; a UserError or OSError on one becomes a UserError on all, with that one's words."""
        if self.size == 1:
            return work()
        error = None
        try:
            result = work()
        except (UserError, OSError) as raised:
            error = remedy(raised) if isinstance(raised, OSError) else str(raised)
        errors: list[str | None] = [None] * self.size
        dist.all_gather_object(errors, error)
        for rank, said in enumerate(errors):
            if said is not None:
                raise SharedError(said if rank == 0 else f"rank {rank}: {said}")
        return result

    def wait(self) -> None:
        """Until all processes are here."""
        self.largest(0)

    def one_a_machine_first(self, work: Callable[[], T]) -> T:
        """`work()` on every process, on each machine by one of them before the others: it may download a file."""
        found = self.together(lambda: work() if local_rank() == 0 else None)
        return self.together(lambda: work() if found is None else found)

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work()` gives on the first process, on all; it runs there alone."""
        if self.size == 1:
            return work()
        found = [self.together(lambda: work() if self.is_first else None)]
        dist.broadcast_object_list(found)
        return cast(T, found[0])


ALONE = World()


def local_rank() -> int:
    """This process's number on its machine, as torchrun gives it; what a shell was left with means nothing."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched_size() > 1 else 0


def local_size() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched_size() -> int:
    """How many processes a launcher started as one run; 1 without one.

    :raises UserError: if its variables are there in part, as some environments leave them, or no numbers.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if text == "1":
        return 1
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    numbers = {name: os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "MASTER_PORT")} | {"WORLD_SIZE": text}
    odd = [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()] + ["WORLD_SIZE=0"] * (
        text == "0"
    )
    if missing or odd:
        seen = f"WORLD_SIZE={text} is set, {missing[0]} is not" if missing else f"{odd[0]} is no such number"
        raise UserError(f"{seen}: start with torchrun, or unset WORLD_SIZE")
    return int(text)


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched() or launched_size() > 1


def launcher() -> str:
    """The process that started this one."""
    return f"process {os.getppid()} on {platform.node()}"


def restarts() -> int:
    """How often torchrun has started these processes again after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def main_of_process(main: Callable[[], int]) -> int:
    """`main()`; under torchrun an exception in it is told to the launcher, which names the process that failed first."""
    # `record` gives None where the program left by sys.exit(0), as after --help.
    return record(main)() or 0 if dist.is_torchelastic_launched() else main()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes that torchrun started with this one; `ALONE` without it. NCCL between GPUs, gloo between CPUs.

    device: what `--device` says.
    """
    if launched_size() == 1:
        yield ALONE
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    store, rank, size = next(rendezvous("env://"))
    if local_size() == size:
        # Without --rdzv-backend torchrun keeps one store for all attempts, and addresses of dead processes are found in
        # it (pytorch issue 135712). On several machines the number of the attempt may differ: --rdzv-backend=c10d there.
        store = PrefixStore(f"attempt {restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size)
    except SharedError:
        raise
    except UserError as error:
        error.alone = True
        raise
    # Not after an error: the others may never come. DistributedDataParallel's cycles would keep gloo's threads alive, and one
    # that frees a tensor while the interpreter ends aborts the process (pytorch pull request 179291).
    gc.collect()
    dist.destroy_process_group()


@contextmanager
def device_of(flag: str, deterministic: bool) -> Iterator[tuple[World, torch.device]]:
    """The processes, and this one's device: of several on a machine each has its own GPU.

    :raises UserError: if `--device` cannot be used, there are more processes than GPUs, or all are sent to one.
    """

    def own() -> torch.device:
        gpus, several = torch.cuda.device_count(), launched_size() > 1 and flag != "cpu"
        if several and flag.startswith("cuda:"):
            raise UserError(f"--device {flag}: with several processes each takes its own GPU: write --device cuda")
        if several and gpus < local_size() and (flag != "auto" or gpus):
            raise UserError(
                f"--device {flag}: {local_size()} processes and {gpus} GPUs on this machine: start as many "
                "processes as GPUs (torchrun --nproc_per_node), or give --device cpu"
            )
        return use_device(f"cuda:{local_rank()}" if several and gpus else flag, deterministic)

    with joined(flag) as world:
        yield world, world.together(own)
