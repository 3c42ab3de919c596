"""Encoding elsewhere: the seam for servers, several batches under way at once, and what no server takes run here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

import torch

from ..cancellation import current_cancellation
from ..checkpoint import ColBERTSpec
from ..observing import timed
from .batching import batches_by_tokens
from .forward import Forward
from .merging import Deliver
from .tokens import TokenSequence

__all__ = ["Connection", "LazyForward", "RemoteForward", "Spreader"]


class Connection(Protocol):
    """Servers that run sequences of one checkpoint.

    Attributes:
        concurrency: How many batches a call may have under way.
    """

    concurrency: int

    def takes(self, sequence: TokenSequence) -> bool:
        """Whether they can run a sequence.

        Args:
            sequence: With at least one token.

        Returns:
            False where it has to be run here.

        Raises:
            InputError: If that is not allowed either.
        """
        ...

    def submit(self, sequences: Sequence[TokenSequence]) -> Future[torch.Tensor]:
        """Begin to run a batch.

        Args:
            sequences: At least one, all of them such that ``takes`` holds.

        Returns:
            To come: what ``Forward`` returns, on the CPU, normalised or not where the checkpoint normalises. Cancelling
            it ends the work.
        """
        ...


@runtime_checkable
class RemoteForward(Protocol):
    """A forward pass on servers, as settings; connected once a checkpoint is read.

    Attributes:
        batch_tokens: Tokens of a batch, where the user does not say.
    """

    batch_tokens: int

    def connect(
        self, spec: ColBERTSpec, probe: TokenSequence, expected: Callable[[], torch.Tensor | None]
    ) -> Connection:
        """Make ready for a checkpoint.

        Args:
            spec: The checkpoint, complete with ids and lengths.
            probe: A short sequence of it, to compare servers by.
            expected: Gives the local weights' vectors of the probe, or None while they are not in memory.

        Returns:
            What runs its sequences.

        Raises:
            InputError: If it can't be run there.
        """
        ...

    def close(self) -> None:
        """Close connections; the next batch opens them again."""
        ...


class LazyForward:
    """A forward pass that is loaded by the first batch.

    Args:
        load: Loads it.
        probe: A sequence to run once it is loaded.
        device: Where its vectors are.
    """

    def __init__(self, load: Callable[[], Forward], probe: TokenSequence, device: torch.device) -> None:
        self._load = load
        self._probe = probe
        self.device = device
        self._lock = threading.Lock()
        self._forward: Forward | None = None
        self._probed: torch.Tensor | None = None

    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Run a batch; see ``Forward``."""
        return self.get()(sequences)

    def get(self) -> Forward:
        """The forward pass, loaded if it was not."""
        if self._forward is not None:
            return self._forward
        with timed("load_s"), self._lock:
            if self._forward is None:
                forward = self._load()
                self._probed = forward([self._probe]).cpu()
                self._forward = forward
            return self._forward

    def probed(self) -> torch.Tensor | None:
        """Its vectors of the probe, ``(tokens, dim)`` on the CPU; None while it is not loaded."""
        return self._probed


class Spreader:
    """Runs the sequences of a call on servers, several batches at once; those that no server takes, here.

    Calls do not wait for each other as they do in a ``Merger``: servers merge requests by themselves. No call has more
    batches under way than the servers take at once, so a small one finds at most that many of a large one before it.

    Args:
        connection: The servers.
        local: The forward pass here.
        here: Runs sequences by it.
        finish: A batch and its vectors to a matrix per sequence.
        batch_tokens: Maximum number of tokens in a batch; a longer sequence stands alone.
        batch_size: Maximum number of sequences in a batch. None: only the tokens count.
    """

    def __init__(
        self,
        connection: Connection,
        local: LazyForward,
        here: Callable[[list[TokenSequence], Deliver], int],
        finish: Callable[[torch.Tensor, list[TokenSequence]], list[torch.Tensor]],
        batch_tokens: int,
        batch_size: int | None = None,
    ) -> None:
        self._connection = connection
        self._local = local
        self._here = here
        self._finish = finish
        self._batch_tokens = batch_tokens
        self._batch_size = batch_size

    def __call__(self, sequences: Sequence[TokenSequence], deliver: Deliver) -> int:
        """Encode sequences.

        Args:
            sequences: What to encode.
            deliver: Called in this thread with the position and the matrix of each sequence, in any order.

        Returns:
            The number of batches, there and here.

        Raises:
            CancelledError: If the async caller for whom this runs was cancelled.
            InputError: If a sequence may be run neither there nor here.
            RemoteError: If the servers do not do it.
        """
        away, here = self._divide(sequences)
        if any(sequences[position].ids for position in here):
            self._local.get()  # first: servers are compared with it before vectors of both are used
        batches = self._batches(sequences, away)
        with _UnderWay(self._connection, sequences) as under_way:
            for batch in islice(batches, self._connection.concurrency):
                under_way.send(batch)
            local = [sequences[position] for position in here]
            count = self._here(local, lambda place, matrix: deliver(here[place], matrix))
            for done, vectors in under_way:
                count += 1
                for batch in islice(batches, 1):
                    under_way.send(batch)
                matrices = self._finish(vectors.to(self._local.device), [sequences[position] for position in done])
                for position, matrix in zip(done, matrices, strict=True):
                    deliver(position, matrix)
        return count

    def _divide(self, sequences: Sequence[TokenSequence]) -> tuple[list[int], list[int]]:
        """Positions of those that servers run, and of the others; one without tokens needs nobody."""
        away = [p for p, sequence in enumerate(sequences) if sequence.ids and self._connection.takes(sequence)]
        return away, sorted(set(range(len(sequences))) - set(away))

    def _batches(self, sequences: Sequence[TokenSequence], positions: list[int]) -> Iterator[list[int]]:
        lengths = [len(sequences[position].ids) for position in positions]
        for batch in batches_by_tokens(lengths, self._batch_tokens, self._batch_size, packed=True):
            yield [positions[place] for place in batch]


class _UnderWay:
    """Batches of sequences on their way; what is still there on leaving is called off."""

    def __init__(self, connection: Connection, sequences: Sequence[TokenSequence]) -> None:
        self._connection, self._sequences = connection, sequences
        self._batches: dict[Future[torch.Tensor], list[int]] = {}
        self._done = SimpleQueue[Future[torch.Tensor] | None]()
        self._cancellation = current_cancellation()

    def send(self, batch: list[int]) -> None:
        """Send the sequences at some positions."""
        future = self._connection.submit([self._sequences[position] for position in batch])
        self._batches[future] = batch
        future.add_done_callback(self._done.put)

    def __iter__(self) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Batches and their vectors, as they come."""
        while self._batches:
            self._cancellation.check()
            future = self._done.get()
            if future is not None:
                yield self._batches.pop(future), future.result()

    def _wake(self) -> None:
        self._done.put(None)

    def __enter__(self) -> _UnderWay:
        self._cancellation.wakers.add(self._wake)
        return self

    def __exit__(self, *error: object) -> None:
        self._cancellation.wakers.discard(self._wake)
        for future in self._batches:
            future.cancel()
