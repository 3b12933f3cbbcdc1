"""Functions run in several processes at once, joined by gloo, and what starts them: a server that has torch loaded
already and forks, so that a process costs milliseconds instead of seconds."""

import contextlib
import ctypes
import importlib
import io
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "train", "evaluate_on_pgd_attacks", "scipy.stats"])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _child(queue, rank, size, port, function, args):
    os.environ.update(_environment(rank, size, port))
    torch.set_num_threads(1)
    try:
        whole = io.BytesIO()  # tensors in a queue would be handed over as open files of a process that ends
        torch.save(function(*args), whole)
        queue.put((rank, whole.getvalue(), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))


def in_processes(size, function, *args, timeout=120):
    """`function(*args)` in `size` processes with torchrun's environment: what each returned, by rank."""
    queue, port = CONTEXT.Queue(), free_port()
    processes = [CONTEXT.Process(target=_child, args=(queue, rank, size, port, function, args)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        results = dict((rank, (value, error)) for rank, value, error in (queue.get(timeout=timeout) for _ in processes))
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    errors = [f"rank {rank}: {error}" for rank, (_, error) in sorted(results.items()) if error is not None]
    assert not errors, "\n".join(errors)
    return [torch.load(io.BytesIO(results[rank][0]), weights_only=False) for rank in range(size)]


class Started:
    """`function(*args)` in a process of its own, with what it has written so far."""

    def __init__(self, function, *args, environment=None):
        reader, writer = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_alone, args=(writer, function, args, environment or {}))
        self.process.start()
        writer.close()
        self.text = ""
        self.reader = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self.reader.start()

    def _read(self, reader):
        while data := os.read(reader.fileno(), 1 << 16):
            self.text += data.decode(errors="replace")

    def wait_for(self, condition, timeout=60):
        """Until `condition()`; it fails if the process ends before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline and self.process.is_alive(), self.text
            time.sleep(0.005)

    def join(self, timeout=120):
        """Its exit status, negative for a signal."""
        self.process.join(timeout)
        alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        self.reader.join(5)
        assert not alive, f"hangs: {self.text}"
        return self.process.exitcode


def started_together(size, function, *args):
    """`Started` processes of one world."""
    port = free_port()
    return [Started(function, *args, environment=_environment(rank, size, port)) for rank in range(size)]


def _environment(rank, size, port):
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in numbers.items()}


def _alone(writer, function, args, environment):
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(writer.fileno(), number)
    writer.close()
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    try:
        status = function(*args) or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def program(name, argv):
    """The status of one of the programs."""
    return importlib.import_module(name).main([str(a) for a in argv])


def quietly(name, argv):
    """The same, and what it says of itself."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = program(name, argv)
    return status, out.getvalue()


def train_alone(argv):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests were started under nohup
    return program("train", argv)


def threads_after_training(argv):
    """Names of the threads that are left when train.main has returned."""
    assert train_alone(argv) == 0
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def train_limited(argv, size):
    """train.main, no file of which may grow beyond `size` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return train_alone(argv)


def set_root_powers(wanted):
    """Linux: whether this thread, if it is root's, reads and writes whatever the modes of files say. No one else is changed."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for the higher numbers
    assert libc.capget(header, sets) == 0
    override_and_search = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    sets[0] = sets[0] | (sets[1] & override_and_search) if wanted else sets[0] & ~override_and_search
    assert libc.capset(header, sets) == 0


def train_without_root_powers(argv):
    """train.main, for which file modes count also as root."""
    set_root_powers(False)
    return train_alone(argv)


def train_slowly(argv, seconds):
    """train.main whose first step takes so long."""
    import trainer

    def slow(world, own, *_):
        print("in a step", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
        return own, None

    trainer.merged = slow
    return train_alone(argv)


def train_hanging(argv, patience):
    """train.main whose second process hangs before it sends anything in step 3, while the first waits for it."""
    import trainer
    from processes import signals

    signals.PATIENCE = patience
    original, steps = trainer.merged, itertools.count(1)

    def hanging(world, *own):
        if next(steps) == 3:
            print("in step 3", flush=True)
            while world.rank == 1:
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])  # this thread hears nothing
                time.sleep(60)
        return original(world, *own)

    trainer.merged = hanging
    return train_alone(argv)


def fail_at(place, count, fault="kill"):
    """From now on this process is killed by SIGKILL, or raises, at the `count`-th time that it comes to `place`."""
    import pathlib

    import check
    import trainer
    from hardware import fast_pgd
    from records import checkpoint, run_folder

    owner, name, after = {
        "attack": (fast_pgd.FastPgd, "__call__", False),
        "fsync": (os, "fsync", False),  # the temporary file is written, not yet in its place
        "before the replace": (pathlib.Path, "replace", False),
        "after the replace": (pathlib.Path, "replace", True),
        "link": (os, "link", True),  # the old state has its second name
        "save": (checkpoint, "digest", False),
        "rows": (run_folder.RunFolder, "append", True),  # a check's rows are there, the state after it is not
        "check": (check, "check_batch", False),
        "step": (trainer, "merged", False),
    }[place]
    original, left = getattr(owner, name), count

    def failing(*args, **kwargs):
        nonlocal left
        left -= 1
        result = original(*args, **kwargs) if left or after else None
        if left == 0 and fault == "raise":
            raise RuntimeError(f"injected in {place}")
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, failing)


def train_until(argv, place, count):
    """train.main, killed as `fail_at` says."""
    fail_at(place, count)
    return train_alone(argv)


def train_where_data_is_missing(argv):
    """train.main; the second process finds no data."""
    import train
    from errors import UserError

    def missing(*args, **kwargs):
        raise UserError("data file gone: not there")

    if os.environ["RANK"] == "1":
        train.load_dataset = missing
    return quietly("train", argv)
