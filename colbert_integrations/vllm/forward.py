"""VLLMForward: the forward pass on vLLM servers; all that surrounds it stays here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any, Literal

import torch

from ..checkpoint import ColBERTSpec
from ..encoder import Connection, TokenSequence
from ..errors import InputError, RemoteError, RemoteMismatchError, RemoteRefusedError
from .link import Link
from .probe import UNIT, Probed, check_models, check_spec, check_vectors
from .servers import Server, Servers, open_client
from .settings import ServerSettings, roots
from .wire import Failure, pooling_request, read_rows

__all__ = ["VLLMForward"]

# What a server answers to tokens or a task that its model does not have.
_BAD_REQUEST = 400
# A request that has waited longer for another's check, which then failed, does not check once more: the server may be
# hanging, and each that waits would do so for its own timeout.
_PATIENCE_S = 1.0

_Expected = Callable[[], torch.Tensor | None]


class VLLMForward:
    """The forward pass of a ``ColBERT`` on one or several vLLM servers.

    Tokenisation, markers, truncation, windows, expansion, skiplist and normalisation stay here; a server gets token
    ids and gives one vector for each (``POST /pooling``, task ``token_embed``). So vectors equal those of the same
    checkpoint run here, within the dtypes of server and wire.

    A server attends to every token that it is sent. Where a checkpoint does not attend to its query expansion, as those
    in the manner of colbertv2.0, queries shorter than the expansion are encoded with local weights, which are loaded by
    the first of them; documents never need that.

    Nothing is asked of a server before the first text is to be encoded. Then, and again after each failure, its model
    name, its longest input and its vectors for a short probe are compared with the checkpoint, with the local weights
    where those are loaded, and else with what the first server gave. A server that fails is avoided while others work,
    and one that hung until it has answered a copy of a request, which goes to it beside ``concurrency``; requests are
    sent again after connection errors, timeouts, 429 and 5xx, never after another 4xx.

    Safe to share between threads and models. Pickles and copies carry settings, without the key and the connections.

    Args:
        urls: Root of a server, such as ``"http://gpu-1:8000"``, or of several that serve the same model.
        model: The name that the servers give the model (``--served-model-name``). None: the one that they serve.
        api_key: Sent as a bearer token. None: the variable ``VLLM_API_KEY``, if it is set. vLLM itself does not guard
            ``/pooling`` by its ``--api-key``; a proxy has to.
        embed_dtype: Of the vectors on their way: ``"float16"`` errs by 2.4e-4 at most in a unit vector,
            ``"float32"`` takes twice the bytes.
        queries: What becomes of queries that no server can encode (see above): ``"local"`` encodes them here,
            ``"refuse"`` raises. All others go to the servers.
        concurrency: Requests under way at most, over all servers. None: 8 for each server.
        timeout: Seconds that a request may take, waiting in the server's queue included.
        retries: How often a request is sent again when all servers have failed it.

    Raises:
        InputError: If an argument is invalid.

    Source:
        The protocol of vLLM 0.32 and 0.33: vllm/entrypoints/pooling.

    Example:
        >>> forward = VLLMForward(["http://gpu-1:8000", "http://gpu-2:8000"])
        >>> forward
        VLLMForward(['http://gpu-1:8000', 'http://gpu-2:8000'])
    """

    # Tokens in a request, if ColBERT's batch_tokens does not say: large enough that HTTP costs little, small enough
    # that the requests under way are answered in time also by a server without a GPU.
    batch_tokens = 8192

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str | None = None,
        *,
        api_key: str | None = None,
        embed_dtype: Literal["float16", "float32"] = "float16",
        queries: Literal["local", "refuse"] = "local",
        concurrency: int | None = None,
        timeout: float = 120.0,
        retries: int = 3,
    ) -> None:
        if embed_dtype not in ("float16", "float32"):
            raise InputError(f"embed_dtype must be 'float16' or 'float32', not {embed_dtype!r}")
        if queries not in ("local", "refuse"):
            raise InputError(f"queries must be 'local' or 'refuse', not {queries!r}")
        self.settings = ServerSettings(roots(urls), model, api_key, concurrency, timeout, retries)
        self.embed_dtype = embed_dtype
        self.queries = queries
        self._link = Link(partial(Servers, self.settings))

    def connect(self, spec: ColBERTSpec, probe: TokenSequence, expected: _Expected) -> Connection:
        """Make ready to encode for a checkpoint; nothing is sent yet.

        Args:
            spec: The checkpoint.
            probe: A short sequence that every server is asked to encode before others.
            expected: Gives the local weights' vectors of it, ``(tokens, dim)``, or None while those are not in memory.

        Returns:
            What runs its sequences.

        Raises:
            InputError: If vLLM does not run this checkpoint as it was trained, or the key or the proxies of the
                environment can't be used.
        """
        check_spec(spec)
        open_client(self.settings)  # not kept: whoever sets a key or a proxy before the first request is heard
        return _Connection(self, self._link, spec, probe, expected)

    def close(self) -> None:
        """Close the connections once the requests that are under way have ended; the next call opens them again."""
        self._link.close()

    def __copy__(self) -> VLLMForward:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> VLLMForward:
        return self

    def __reduce__(self) -> tuple[Callable[[], VLLMForward], tuple[()]]:
        arguments = {**self.settings.arguments(), "embed_dtype": self.embed_dtype, "queries": self.queries}
        return partial(VLLMForward, **arguments), ()

    def __repr__(self) -> str:
        return f"VLLMForward({list(self.settings.urls)})"


class _Connection:
    """The servers of a ``VLLMForward``, for one checkpoint."""

    def __init__(
        self, forward: VLLMForward, link: Link, spec: ColBERTSpec, probe: TokenSequence, expected: _Expected
    ) -> None:
        self._forward = forward
        self._link = link
        self._spec = spec
        self._probe = probe
        self._expected = expected
        self._first: Probed | None = None  # of the server that was compared first: all are to serve the same weights
        self._dim = _served_dim(spec)
        self.concurrency = forward.settings.most_requests

    def takes(self, sequence: TokenSequence) -> bool:
        """Whether the servers can run a sequence; refuse it where nobody may."""
        if sequence.attended == len(sequence.ids):
            return True
        if self._forward.queries == "refuse":
            raise InputError(
                f"{self._spec.name} does not attend to its query expansion, and a vLLM server attends to every token: "
                "its queries would be wrong. Pass queries='local' to VLLMForward, which encodes them here"
            )
        return False

    def submit(self, sequences: Sequence[TokenSequence]) -> Future[torch.Tensor]:
        """Send a batch; see ``Connection``."""
        try:
            return self._link.start(lambda servers: servers.anywhere(partial(self._run, servers, sequences)))
        except InputError as error:
            # The environment, as it is by now: an InputError would be taken for one of these texts, and others tried.
            raise RemoteError(str(error), self._forward.settings.urls[0]) from error

    async def _run(self, servers: Servers, sequences: Sequence[TokenSequence], server: Server) -> torch.Tensor:
        await self._check(servers, server)
        vectors = await self._rows(servers, sequences, server)
        # What is not a number is left to who knows whose it is.
        if self._spec.normalize and bool(((vectors.norm(dim=-1) - 1).abs() >= UNIT).any()):
            raise Failure(f"{server.url} gave vectors that are not of unit length, which it did not before")
        return vectors

    async def _rows(self, servers: Servers, sequences: Sequence[TokenSequence], server: Server) -> torch.Tensor:
        ids = [sequence.ids for sequence in sequences]
        dtype = self._forward.embed_dtype
        request = pooling_request(ids, dtype, normalized=self._spec.normalize)
        answer = await servers.ask(server, "/pooling", request)
        return read_rows(server.url, answer, [*map(len, ids)], self._dim, dtype)

    async def _check(self, servers: Servers, server: Server) -> None:
        """Compare a server with the checkpoint, once in its life, and once more when local weights are loaded."""
        life, came = server.life, monotonic()
        async with server.checking:
            expected = self._expected()
            checked, compared = server.checked.get(self, (-1, False))
            if checked == server.life and (compared or expected is None):
                return
            now = monotonic()
            if server.life != life and now < server.down_until and now - came > _PATIENCE_S:
                raise server.last_failure
            await self._compare(servers, server, expected)
            server.checked[self] = (server.life, expected is not None)

    async def _compare(self, servers: Servers, server: Server, expected: torch.Tensor | None) -> None:
        models = await servers.ask(server, "/v1/models")
        check_models(server.url, models, self._forward.settings.model, self._spec)
        try:
            vectors = await self._rows(servers, [self._probe], server)
        except RemoteRefusedError as error:
            if error.status != _BAD_REQUEST:
                raise
            raise RemoteMismatchError(
                f"{server.url} serves another model than {self._spec.name}, or for another task: {error}",
                server.url,
                error.status,
            ) from error
        here = f"the weights of {self._spec.name} that are loaded here"
        # Nothing is waited for in between, so of two servers that are asked at once the second is compared.
        check_vectors(server.url, vectors, self._spec, self._first if expected is None else Probed(expected, here))
        self._first = self._first or Probed(vectors, f"{server.url} gave")


def _served_dim(spec: ColBERTSpec) -> int | None:
    """Dimension of the vectors before any is cut; None where the spec does not say."""
    if spec.projection:
        return spec.projection[-1].out_features
    return spec.dim if spec.truncate_dim is None else None
