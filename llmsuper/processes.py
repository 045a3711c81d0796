"""The processes of one run: who they are, and what they tell each other.

`torchrun --nproc-per-node P -m llmsuper overlap …`, and `accelerate launch` likewise, start P processes that know of each other.
What they exchange is small beside the rows that each of them reads: sums over its rows (8 m² bytes for a Gram matrix), once a
pass, and a few words about each model. It goes over gloo, from memory to memory, whatever the rows are worked on with: a sum
ends in this memory anyway, and gloo notices at once when the other end is gone, where NCCL would wait.

Every exchange goes up and down one tree, so each process knows whom it waits for. A process that is killed closes its
connections: those that wait for it raise `LostProcessError` and end, and so do those that wait for them. WAIT is for the rarer
case of a machine that vanishes without a word. It is longer than the 5 minutes for which the Hub may keep one of
several processes waiting, and much shorter than torch's own half an hour.
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, TypeVar

from llmsuper.errors import BackendError, LlmsuperError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

WAIT = timedelta(minutes=10)
"""How long a process waits for another one that says nothing."""
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where launchers (torch's and accelerate's, and those of MPI) say how many processes there are, and which one this is."""

T = TypeVar("T")


class LostProcessError(BackendError):
    """Another process of the run has ended, so that nothing can be finished together any more."""


class Mergeable(Protocol):
    """An accumulator: a sum that takes in another sum."""

    def merge(self, other: Self) -> None: ...


M = TypeVar("M", bound=Mergeable)


class Processes:
    """The processes of a run, `count` of them, of which this is number `rank`, from 0.

    Each method is called by every process, in the same order. An `LlmsuperError` of one is raised on all.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None) -> None:
        self.rank, self.count = rank, count
        self._group = group
        self._told: LlmsuperError | None = None
        lowest = rank & -rank or count  # a binomial tree: the lowest bit of a rank says how many ranks are below it
        self._parent = rank - lowest
        self._children = [rank + (1 << k) for k in range(count.bit_length()) if 1 << k < min(lowest, count - rank)]

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and stores."""
        return self.rank == 0

    def gathered(self, mine: T) -> list[T]:
        """What each process has, in their order."""
        everyone: list[T] = self._exchange([mine], list.__add__)
        return everyone

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first process; the others do not call it."""
        try:
            mine = work() if self.first else None
        except LostProcessError:
            raise
        except LlmsuperError as error:
            self._exchange(error, _no_more)
            raise
        given: T = self._exchange(mine, lambda first, _: first)
        return given

    def total(self, sums: M) -> M:
        """What all processes have summed up, merged; `sums` must not be used afterwards."""
        (whole,) = self._exchange([sums], _merged)
        everything: M = whole
        return everything

    def merge(self, accumulators: Sequence[Mergeable]) -> None:
        """Give each accumulator what those in its place on the other processes have seen as well."""
        total = self._exchange(list(accumulators), _merged)
        for mine, whole in zip(accumulators, total, strict=True):
            mine.__dict__ = whole.__dict__

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raises an `LlmsuperError` that ends this block on one process on all of them, of several that of the lowest rank.

        A process that fails says so in place of what the others wait for, be that inside the block or at its end.
        """
        try:
            yield
        except LostProcessError:
            raise
        except LlmsuperError as error:
            if error is not self._told:
                self._exchange(error, _no_more)
            raise
        else:
            self._exchange(None, _no_more)

    def _exchange(self, said: Any, join: Callable[[Any, Any], Any]) -> Any:
        """What all have said, joined in the order of ranks, on every process; an error in place of it is raised."""
        for child in self._children:
            heard = self._receive(child)
            if not isinstance(said, LlmsuperError):
                said = heard if isinstance(heard, LlmsuperError) else join(said, heard)
        if self.rank:
            self._send(said, self._parent)
            said = self._receive(self._parent)
        for child in reversed(self._children):
            self._send(said, child)
        if isinstance(said, LlmsuperError):
            self._told = said
            raise said
        return said

    def _send(self, what: object, to: int) -> None:
        import torch
        import torch.distributed as dist

        parts = _as_bytes(what)
        sizes = torch.tensor([len(part) for part in parts])
        whole = (torch.frombuffer(part, dtype=torch.uint8) for part in parts if len(part))
        with self._waiting_for(to):
            for tensor in (torch.tensor([len(parts)]), sizes, *whole):
                dist.send(tensor, to, group=self._group)

    def _receive(self, source: int) -> Any:
        import torch
        import torch.distributed as dist

        with self._waiting_for(source):
            count = torch.zeros(1, dtype=torch.int64)
            dist.recv(count, source, group=self._group)
            sizes = torch.zeros(int(count), dtype=torch.int64)
            dist.recv(sizes, source, group=self._group)
            parts = [torch.empty(size, dtype=torch.uint8) for size in sizes.tolist()]
            for part in filter(len, parts):
                dist.recv(part, source, group=self._group)
        first, *buffers = (part.numpy() for part in parts)
        return pickle.loads(first.data, buffers=buffers)

    @contextmanager
    def _waiting_for(self, other: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise LostProcessError(
                f"process {other} of {self.count}: it has ended, or said nothing for {WAIT}, while process {self.rank} "
                f"waited for it ({reason}). See what it said; records that were stored are kept: run the same command again."
            ) from error


ALONE = Processes()
"""One process, as usual."""


def join_processes() -> Processes:
    """The processes of this run: those of torch's process group where there is one, else those that a launcher has started.

    Called by every process, once. Where no process group was there, accelerate makes one (NCCL on GPUs, gloo on CPUs),
    and each process keeps to its part of the machine: one GPU, and an equal share of the cores.

    Raises `BackendError` where a launcher was asked for several processes and has started one.
    """
    grouped = "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()
    if not grouped:
        if _announced(COUNTS, 1) < 2:
            _check_accelerate()
            return ALONE
        _keep_to_own_part()
    import torch.distributed as dist

    if not grouped:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        atexit.register(_leave)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _stopped)
    return Processes(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=WAIT))


@contextmanager
def only_first_speaks() -> Iterator[None]:
    """What the other processes of a launch print, on stdout or stderr, goes nowhere; tracebacks come through."""
    with ExitStack() as quiet:
        if _announced(RANKS, 0):
            nowhere = quiet.enter_context(Path(os.devnull).open("w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        yield


def speaks_of(error: LlmsuperError) -> bool:
    """Whether this process is the one to say it: all know of an error that is not about the processes themselves."""
    return isinstance(error, LostProcessError) or not _announced(RANKS, 0)


def _announced(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def _check_accelerate() -> None:
    """`accelerate launch --num_processes 2` starts a single process where it finds no second GPU, and does not say so."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise BackendError(
            "accelerate launch: it was asked for several processes and has started one, as it does where there are not as "
            "many GPUs. On CPUs say `accelerate launch --multi_gpu --num_processes P`, or `torchrun --nproc-per-node P`."
        )


def _keep_to_own_part() -> None:
    """One GPU of those that are visible, and a share of the cores, for each of the processes on this machine.

    Before torch looks at either. Threads do not inherit which GPU is the current one, so there is only one to see.
    """
    import torch

    place, count = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = gpus if gpus != [""] else [str(k) for k in range(torch.cuda.device_count())]
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[place % len(visible)]
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= count:
            os.sched_setaffinity(0, cores[place * len(cores) // count : (place + 1) * len(cores) // count])


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _stopped(*_: object) -> NoReturn:
    raise LostProcessError(
        f"process {_announced(RANKS, 0)} of {_announced(COUNTS, 1)}: it was told to stop (SIGTERM), as launchers do when another "
        "process has ended. See what that one said; records that were stored are kept: run the same command again."
    )


def _merged(left: list[Mergeable], right: list[Mergeable]) -> list[Mergeable]:
    for mine, other in zip(left, right, strict=True):
        mine.merge(other)
    return left


def _no_more(*_: object) -> None:
    """What processes that have nothing more to say are joined to."""


class _Pickler(pickle.Pickler):
    """Takes a tensor as numbers: the GPU that it is on here may not exist there."""

    def reducer_override(self, what: Any) -> Any:
        if "torch" in sys.modules and isinstance(what, sys.modules["torch"].Tensor):
            return partial(_as_tensor, device=what.device.type), (what.detach().cpu().numpy(),)
        return NotImplemented


def _as_tensor(numbers: Any, device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(numbers).to(device)


def _as_bytes(what: object) -> list[bytearray | memoryview]:
    """The object as bytes to unpickle, and after them the memory of its arrays, which is not copied."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=arrays.append).dump(what)
    memory = [array.raw() for array in arrays]
    return [bytearray(pickled.getbuffer()), *(bytearray(m) if m.readonly else m for m in memory)]
