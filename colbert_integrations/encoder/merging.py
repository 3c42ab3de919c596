"""Merging: calls that encode at the same time share batches, and one of them at a time runs a batch for all."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import count
from time import monotonic

import torch

from ..cancellation import current_cancellation
from .batching import batches_by_tokens
from .tokens import TokenSequence

__all__ = ["Deliver", "Merger"]

RunBatch = Callable[[list[TokenSequence]], list[torch.Tensor]]
Deliver = Callable[[int, torch.Tensor], None]

# The longest wait for callers that the last batch was shared with. They come back within this, or have other work.
_WAIT_S = 0.001
# And the longest as a share of what the last batch took, so that waiting in vain never costs more than this.
_WAIT_SHARE = 0.1
# A batch that ended longer ago says nothing about who else is there.
_LATELY_S = 0.1
# Requests of at most so many batches are served in one piece, as a rerank of a hundred passages is; larger ones go
# batch by batch. When all went batch by batch, 64 reranks of two batches each were all done in the second half of the
# time that they took together.
_WHOLE_BATCHES = 16
# Whoever waits looks again after so long: another may have been interrupted before it woke anybody.
_LOST_S = 1.0
# Tokens that may wait for a batch, about 100 bytes each as Python lists: 400 MB. Whoever would exceed that waits first.
_MOST_WAITING = 1 << 22
# Held while a merger forgets who stayed with the parent of a fork.
_AFTER_A_FORK = threading.Lock()


class _Request:
    """The sequences of one call, and what has become of them. Guarded by the merger's lock."""

    def __init__(
        self, number: int, sequences: Sequence[TokenSequence], batch_tokens: int, lock: threading.RLock
    ) -> None:
        self.number = number  # in order of arrival
        self.sequences = sequences
        lengths = [len(sequence.ids) for sequence in sequences]
        # The next one is the last: longest first, and in order among equals.
        self.waiting = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[::-1]
        self.tokens = sum(lengths)  # of those that wait
        # Tokens that are due together.
        self.piece = self.tokens if self.tokens <= _WHOLE_BATCHES * batch_tokens else batch_tokens
        self.due, self.quantum = 0.0, 0  # when the next tokens should be done by the merger's clock, and how many
        self.running: dict[int, None] = {}  # positions drawn and not handed out, in order
        self.undelivered = len(sequences)
        self.batches = 0  # that were run and held any of them
        self.done: list[tuple[int, torch.Tensor]] = []
        self.error: Exception | None = None
        self.woken = threading.Condition(lock)
        self.cancellation = current_cancellation()

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be computed."""
        return self.error is not None or len(self.done) == self.undelivered

    def set_due(self, start: float) -> None:
        """Say when the next tokens should be done, if they were begun at ``start``."""
        self.quantum = min(self.piece, self.tokens)
        self.due = start + self.quantum

    def next_length(self) -> int:
        """Tokens of the next sequence to be drawn."""
        return len(self.sequences[self.waiting[-1]].ids)

    def take(self) -> None:
        """Draw the next sequence."""
        length = self.next_length()
        self.tokens -= length
        self.quantum -= length
        self.running[self.waiting[-1]] = None
        self.waiting.pop()

    def give_back(self) -> None:
        """Let what was drawn and not handed out wait again."""
        done = {position for position, _ in self.done}  # an interrupt may have come right after
        for position in reversed(self.running):
            if position in done:
                continue
            if self.waiting[-1:] != [position]:  # or before it was taken
                self.waiting.append(position)
            self.tokens += self.next_length()
            self.quantum += self.next_length()
        self.running.clear()

    def pause(self) -> None:
        """Wait to be woken, or for a while; raise if nobody waits for the result."""
        self.cancellation.check()
        self.woken.wait(_LOST_S)

    def wake(self) -> None:
        """Wake the one who pauses, from any thread that does not hold the lock."""
        with self.woken:
            self.woken.notify()


_Drawn = list[tuple[_Request, int]]


def _turn(request: _Request) -> tuple[float, int]:
    return request.due, request.number


def _requests(drawn: _Drawn) -> list[_Request]:
    """Those that drawn sequences are of, each once, in order."""
    return list(dict.fromkeys(request for request, _ in drawn))


class Merger:
    """Runs the sequences of all callers in shared batches.

    There is no thread of its own: the first caller runs batches, of the sequences of everybody, until its own are
    done, and then wakes another who waits. So a lone caller waits for nobody, and its batches are those of
    ``batches_by_tokens``.

    A batch takes from the request that is due first: that whose next tokens would be done first if all that wait were
    served side by side; all of its tokens, or a batch of them if they fill many batches. So a query does not wait for a
    corpus, nor a corpus for a stream of queries, and equal requests such as reranks are done one after another, as they
    came, instead of all at the end.

    A batch runs in the thread of any of the callers, with what torch keeps by thread, such as the current CUDA stream:
    all callers need the same.

    Source:
        Demers, Keshav, Shenker 1989, "Analysis and simulation of a fair queueing algorithm": ``due`` is its finish
        number.

    Args:
        run: Encodes one batch: a matrix per sequence.
        batch_tokens: Maximum number of tokens in a batch; a longer sequence stands alone.
        batch_size: Maximum number of sequences in a batch. None: only the tokens count.
        packed: Whether a batch is counted without padding.
        most_waiting: Tokens waiting for a batch beyond which further callers are held up. A request counts for a
            quarter of it at most, so that small ones get past a large one.
    """

    def __init__(
        self,
        run: RunBatch,
        batch_tokens: int,
        batch_size: int | None = None,
        *,
        packed: bool = False,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._run = run
        self._batch_tokens = batch_tokens
        self._batch_size = batch_size
        self._packed = packed
        self._most_waiting = most_waiting
        self._begin()

    def _begin(self) -> None:
        """Nobody is here yet."""
        # Not a plain lock: Ctrl-C can keep a condition from taking that again, and then another thread's is released.
        self._lock = threading.RLock()
        self._numbers = count()
        self._line: deque[_Request] = deque()  # held up at the door
        self._waiting: dict[int, _Request] = {}  # with sequences that wait for a batch, by number
        self._arrived = threading.Condition(self._lock)
        self._leader: _Request | None = None
        self._clock = 0.0  # tokens that a request would have got, had it been served beside the others all the time
        # How many requests the last batch had to do with, when it ended and what it took.
        self._company, self._ended, self._took = 1, 0.0, 0.0
        self._process = os.getpid()  # last: whoever reads this process here finds all of the above

    def __call__(self, sequences: Sequence[TokenSequence], deliver: Deliver) -> int:
        """Encode sequences, together with those of others.

        Args:
            sequences: What to encode.
            deliver: Called in this thread with the position and the matrix of each sequence, in any order.

        Returns:
            The number of batches that held any of them.

        Raises:
            CancelledError: If the async caller for whom this runs was cancelled.
        """
        if not sequences:
            return 0
        if self._process != os.getpid():  # forked: whoever was here stayed with the parent
            with _AFTER_A_FORK:
                if self._process != os.getpid():
                    self._begin()
        request = _Request(next(self._numbers), sequences, self._batch_tokens, self._lock)
        request.cancellation.wakers.add(request.wake)
        try:
            self._enter(request)
            while request.undelivered:
                if self._must_lead(request):
                    self._lead()
                for position, matrix in self._collect(request):
                    deliver(position, matrix)
        finally:
            request.cancellation.wakers.discard(request.wake)
            self._leave(request)
        return request.batches

    # ------------------------------------------------------------------------------------------------ coming and going

    def _enter(self, request: _Request) -> None:
        with self._lock:
            try:
                self._line.append(request)
                while self._line[0] is not request or not self._has_room(request):
                    request.pause()
                request.set_due(self._clock)
                self._waiting[request.number] = request
            finally:
                if request in self._line:  # not where an interrupt came first
                    self._line.remove(request)
                self._admit_next()
            self._arrived.notify()

    def _has_room(self, request: _Request) -> bool:
        share = self._most_waiting // 4
        queued = sum(min(other.tokens, share) for other in self._waiting.values())
        return not self._waiting or queued + min(request.tokens, share) <= self._most_waiting

    def _admit_next(self) -> None:
        if self._line:
            self._line[0].woken.notify()

    def _leave(self, request: _Request) -> None:
        with self._lock:
            if self._leader is request:
                self._leader = None
            self._withdraw(request)
            request.error = None  # its traceback holds this request: a circle that would keep a batch's memory
            self._wake_leader()

    def _withdraw(self, request: _Request) -> None:
        self._waiting.pop(request.number, None)
        request.running.clear()
        self._admit_next()

    def _wake_leader(self) -> None:
        """See to it that somebody leads as long as anything waits."""
        if self._leader is None and self._waiting:
            min(self._waiting.values(), key=_turn).woken.notify()

    # --------------------------------------------------------------------------------------------------------- waiting

    def _must_lead(self, request: _Request) -> bool:
        """Wait for the request to be done, or for the lead."""
        with self._lock:
            while self._leader is not None and not request.settled:
                request.pause()
            if request.settled:
                return False
            request.cancellation.check()
            self._leader = request
            return True

    def _collect(self, request: _Request) -> list[tuple[int, torch.Tensor]]:
        with self._lock:
            if request.error is not None:
                raise request.error
            done, request.done = request.done, []
            request.undelivered -= len(done)
            return done

    # --------------------------------------------------------------------------------------------------------- leading

    def _lead(self) -> None:
        """Run one draw; a leader who needs more leads again, and one who leaves wakes another."""
        drawn: _Drawn = []
        began = monotonic()
        try:
            with self._lock:
                self._linger()
                began = monotonic()
                self._draw(drawn)
            lengths = [len(request.sequences[position].ids) for request, position in drawn]
            for batch in batches_by_tokens(lengths, self._batch_tokens, self._batch_size, packed=self._packed):
                self._run_batch([drawn[place] for place in batch])
        finally:
            with self._lock:
                self._leader = None
                self._give_back(drawn)
                self._company = len({request.number for request, _ in drawn} | self._waiting.keys())
                self._ended = monotonic()
                self._took = self._ended - began

    def _linger(self) -> None:
        """Wait a moment for those that shared the last batch, unless this one is full without them."""
        if monotonic() - self._ended > _LATELY_S:
            return
        until = monotonic() + min(_WAIT_S, self._took * _WAIT_SHARE)
        while len(self._waiting) < self._company and self._tokens_waiting() < self._batch_tokens:
            if not self._arrived.wait(until - monotonic()):
                return

    def _tokens_waiting(self) -> int:
        return sum(request.tokens for request in self._waiting.values())

    def _draw(self, drawn: _Drawn) -> None:
        """Take what the next batch may hold; if it pads and several share it, it is cut once more by length."""
        requests = [_turn(request) for request in self._waiting.values()]
        heapify(requests)
        padded = not self._packed and len(requests) == 1
        tokens = longest = 0
        while requests:
            request = self._waiting[requests[0][1]]
            if drawn and request is not drawn[-1][0] and self._is_better_alone(request, tokens):
                break
            length = request.next_length()
            longest, tokens = max(longest, length), tokens + length
            size = longest * (len(drawn) + 1) if padded else tokens
            if drawn and (size > self._batch_tokens or len(drawn) == self._batch_size):
                break
            drawn.append((request, request.waiting[-1]))  # before it is taken, should an interrupt come between
            request.take()
            self._clock += length / len(self._waiting)
            if request.quantum <= 0:
                request.set_due(request.due - request.quantum)
            if request.waiting:
                heapreplace(requests, _turn(request))
            else:
                heappop(requests)
                del self._waiting[request.number]
        self._admit_next()

    def _is_better_alone(self, request: _Request, tokens: int) -> bool:
        """Whether a batch with so many tokens should end before a request.

        Half a batch is as quick for its tokens as a whole one, and lengths in it are more alike without the next
        request's beginning: filling up cost 2% of the rate of 16 reranks at once.
        """
        return 2 * tokens >= self._batch_tokens and tokens + request.tokens > self._batch_tokens

    def _run_batch(self, batch: _Drawn) -> None:
        # Without those of calls that have failed or gone since.
        batch = [(request, position) for request, position in batch if position in request.running]
        if not batch:
            return
        try:
            matrices = self._run([request.sequences[position] for request, position in batch])
        except Exception as error:
            requests = _requests(batch)
            if len(requests) == 1:
                self._fail(batch[0][0], error)
                return
        else:
            self._hand_out(batch, matrices)
            return
        # One of them is to blame: apart, the others are not harmed.
        for request in requests:
            self._run_batch([entry for entry in batch if entry[0] is request])

    def _fail(self, request: _Request, error: Exception) -> None:
        with self._lock:
            self._withdraw(request)
            request.error = error
            request.woken.notify()

    def _hand_out(self, batch: _Drawn, matrices: list[torch.Tensor]) -> None:
        with self._lock:
            for request in _requests(batch):
                request.batches += 1
            for (request, position), matrix in zip(batch, matrices, strict=True):
                request.done.append((position, matrix))
                request.running.pop(position, None)
                if request.settled:
                    request.woken.notify()

    def _give_back(self, drawn: _Drawn) -> None:
        """Let what was not run, because the leader was interrupted, wait for another batch."""
        for request, _ in drawn:
            if request.running:
                request.give_back()
                self._waiting[request.number] = request
