"""The loops of `benchmarks.loops` in several processes at once, which is how a worker runs a model.

Each process holds the model and its share of the cores, and gets every so manieth text of all in
the order of their lengths, so that none has more to do than another.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

from benchmarks.lengths import deal
from benchmarks.loops import Case, GolemLoop, Loop, Ran, SortedLoop
from golem_tasks.errors import GolemError
from worker.machine import available_cores, cores_of

__all__ = ["Crew"]

_LOOPS: Mapping[str, Callable[[Case], Loop]] = {"golem": GolemLoop, "sorted": SortedLoop}


class Crew:
    """Processes with a model each; a context manager.

    Args:
        folder: the model's.
        dtype: as `Case.of` takes it.
        processes: how many.
        state_dir: where they keep the weights they share.

    Raises:
        GolemError: one of them couldn't load the model, which it says on stderr.
    """

    def __init__(self, folder: Path, dtype: str, processes: int, state_dir: Path) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for index in range(processes):
            ours, theirs = context.Pipe()
            threads = cores_of(index, processes, available_cores())
            given = (theirs, folder, dtype, processes, threads, state_dir)
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            self._processes.append(process)
            theirs.close()
            self._pipes.append(ours)

    def __enter__(self) -> Self:
        try:
            for pipe in self._pipes:
                _receive(pipe)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # at which its process ends
        for process in self._processes:
            process.join()

    def loop(self, name: str) -> Loop:
        """The loop of this name, "golem" or "sorted", in all processes together."""
        return _Together(self._pipes, name)


class _Together:
    def __init__(self, pipes: Sequence[Connection], name: str) -> None:
        self._pipes = pipes
        self._name = name

    def run(self, texts: Sequence[str]) -> Ran:
        """See `Loop`.

        Raises:
            GolemError: a process ended instead, which it explains on stderr.
        """
        shares = deal([len(text) for text in texts], len(self._pipes))
        for pipe, share in zip(self._pipes, shares, strict=True):
            pipe.send((self._name, [texts[index] for index in share]))
        labels = [""] * len(texts)
        tokens = padded = 0
        for pipe, share in zip(self._pipes, shares, strict=True):
            ran = _receive(pipe)
            for index, label in zip(share, ran.labels, strict=True):
                labels[index] = label
            tokens += ran.tokens
            padded += ran.padded_tokens
        return Ran(labels, tokens, padded)


def _receive(pipe: Connection) -> Ran:
    try:
        ran: Ran = pipe.recv()
    except EOFError:
        raise GolemError("A process of the benchmark ended; what it wrote says why.") from None
    return ran


def _serve(
    pipe: Connection, folder: Path, dtype: str, processes: int, threads: int, state_dir: Path
) -> None:
    """What each process does: load, say so, then one loop after the other until nobody asks."""
    case = Case.of(folder, dtype, processes=processes, threads=threads, state_dir=state_dir)
    loops = {name: make(case) for name, make in _LOOPS.items()}
    pipe.send(Ran([]))
    while True:
        try:
            name, texts = pipe.recv()
        except EOFError:
            return
        pipe.send(loops[name].run(texts))
