"""Causal networks over symbols, in torch: what an autoregressive distribution is built on.

They share one protocol, ``network(tokens, cache=None, *, mask=None) -> (logits, cache)``:

- ``tokens``, ``(batch, time)``: those that are new since ``cache`` was returned;
- ``logits``, ``(batch, time, num_symbols)``: of the symbol that follows each of them;
- ``mask``, ``(batch, time so far)``, False at padding to the left of a prompt; None without any;
- an attribute ``num_symbols``.

Inputs may be one more symbol than outputs, ``num_symbols`` itself, which can stand for the start.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

__all__ = ["CausalTransformer", "CharacterGRU", "MarkovTable", "TransformersModel"]


class CharacterGRU(nn.Module):
    """Embedding, GRU and a linear map to logits.

    Parameters
    ----------
    num_symbols
        Outputs; inputs have one more.
    embedding_size, hidden_size, num_layers
        Of the network.
    seed
        Of the starting weights; None draws from torch's global generator.

    Raises
    ------
    ValueError
        If a size is not positive.

    Examples
    --------
    >>> network = CharacterGRU(27, seed=0)
    >>> logits, cache = network(torch.tensor([[0, 5]]))
    >>> logits.shape
    torch.Size([1, 2, 27])
    """

    def __init__(
        self,
        num_symbols: int,
        embedding_size: int = 16,
        hidden_size: int = 64,
        *,
        num_layers: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(
            num_symbols=num_symbols,
            embedding_size=embedding_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        self.num_symbols = num_symbols
        with _seeded(seed):
            self.embedding = nn.Embedding(num_symbols + 1, embedding_size)
            self.recurrent = nn.GRU(embedding_size, hidden_size, num_layers, batch_first=True)
            self.readout = nn.Linear(hidden_size, num_symbols)

    def forward(
        self, tokens: torch.Tensor, cache: Any = None, *, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        inputs = self.embedding(tokens)
        if mask is None:
            outputs, state = self.recurrent(inputs, cache)
            return self.readout(outputs), state
        rows, layers = len(tokens), self.recurrent.num_layers
        state = inputs.new_zeros(layers, rows, self.recurrent.hidden_size)
        state = state if cache is None else cache
        outputs = []
        for time, real in enumerate(mask[:, -tokens.shape[1] :].unbind(1)):
            output, new = self.recurrent(inputs[:, time : time + 1], state)
            # Padding leaves the state as it was, so that a prompt starts from nothing.
            state = torch.where(real[None, :, None], new, state)
            outputs.append(output)
        return self.readout(torch.cat(outputs, dim=1)), state


class MarkovTable(nn.Module):
    """Logits by the last symbol alone: a Markov chain, whose sums can be worked out by hand.

    Parameters
    ----------
    logits
        ``(num_symbols + 1, num_symbols)``: a row for each last symbol, then one for the start; or
        ``(max_length, num_symbols + 1, num_symbols)`` where the chain changes with time.

    Raises
    ------
    ValueError
        Another shape.

    Examples
    --------
    >>> MarkovTable(torch.zeros(3, 2))(torch.tensor([[2, 0, 1]]))[0].shape
    torch.Size([1, 3, 2])
    """

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        if logits.ndim not in (2, 3) or logits.shape[-2] != logits.shape[-1] + 1:
            raise ValueError(
                "logits must have shape (num_symbols + 1, num_symbols), with (max_length,) in "
                f"front where they change with time, got {tuple(logits.shape)}."
            )
        self.num_symbols = logits.shape[-1]
        self.logits = nn.Parameter(logits.clone())

    @classmethod
    def from_probabilities(cls, initial: torch.Tensor, transition: torch.Tensor) -> MarkovTable:
        """Of the first symbol, ``(k,)``, and of the next, ``(k, k)``, rows summing to 1."""
        return cls(torch.cat([transition, initial[None]]).log())

    def forward(
        self, tokens: torch.Tensor, cache: Any = None, *, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        past = 0 if cache is None else cache
        length = tokens.shape[1]
        if self.logits.ndim == 2:
            return self.logits[tokens], past + length
        times = torch.arange(past, past + length, device=tokens.device)
        return self.logits[times, tokens], past + length


class CausalTransformer(nn.Module):
    """A small pre-norm decoder with learnt positions; the cache holds keys and values.

    Parameters
    ----------
    num_symbols
        Outputs; inputs have one more.
    max_length
        Positions, prompt or start symbol included.
    width, num_layers, num_heads
        Of the network; heads divide the width.
    seed
        Of the starting weights; None draws from torch's global generator.

    Raises
    ------
    ValueError
        If a size is not positive or heads do not divide the width; more tokens than positions.
    """

    def __init__(
        self,
        num_symbols: int,
        max_length: int,
        *,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(
            num_symbols=num_symbols,
            max_length=max_length,
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
        )
        if width % num_heads:
            raise ValueError(f"num_heads must divide width, got {num_heads} and {width}.")
        self.num_symbols, self.max_length = num_symbols, max_length
        with _seeded(seed):
            self.embedding = nn.Embedding(num_symbols + 1, width)
            self.position = nn.Embedding(max_length, width)
            self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
            self.norm = nn.LayerNorm(width)
            self.readout = nn.Linear(width, num_symbols)
            for table in (self.embedding, self.position):
                nn.init.normal_(table.weight, std=0.1)

    def forward(
        self, tokens: torch.Tensor, cache: Any = None, *, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        past = 0 if cache is None else cache[0][0].shape[2]
        total = past + tokens.shape[1]
        if total > self.max_length:
            raise ValueError(
                f"tokens must fit {self.max_length} positions, got {total}; raise max_length."
            )
        if mask is None:
            positions = torch.arange(past, total, device=tokens.device)[None]
        else:
            positions = _positions(mask)[:, past:]
        state = self.embedding(tokens) + self.position(positions)
        allowed = _attention(mask, past, total, tokens.device)
        kept = []
        for index, block in enumerate(self.blocks):
            state, pair = block(state, None if cache is None else cache[index], allowed)
            kept.append(pair)
        return self.readout(self.norm(state)), kept


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each added to what comes in."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(
        self, state: torch.Tensor, cache: Any, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        rows, time, width = state.shape
        parts = self.project(self.norms[0](state)).reshape(rows, time, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        seen = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        state = state + self.join(seen.transpose(1, 2).reshape(rows, time, width))
        state = state + self.narrow(gelu(self.widen(self.norms[1](state))))
        return state, (key, value)


class TransformersModel(nn.Module):
    """Any causal language model of Hugging Face `transformers`, under the protocol of this module.

    Dropout is switched off: sampling and scoring would differ. Half precision is fine; the
    distribution adds up in single precision.

    Parameters
    ----------
    model
        An object of ``transformers.AutoModelForCausalLM`` or of the like.

    Raises
    ------
    TypeError
        If the model has no ``config.vocab_size``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        num_symbols = getattr(getattr(model, "config", None), "vocab_size", None)
        if num_symbols is None:
            raise TypeError(
                "model must be a causal language model of transformers, with config.vocab_size, "
                f"got {type(model).__name__}."
            )
        self.num_symbols = int(num_symbols)
        self.model = model
        # Renamed in version 5.
        accepted = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self.eval()

    @classmethod
    def from_pretrained(cls, path: Any, **arguments: Any) -> TransformersModel:
        """From a folder with weights and configuration, by ``transformers``.

        Raises
        ------
        ImportError
            If that package is not installed.
        """
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ImportError(
                "TransformersModel.from_pretrained needs transformers; "
                "pip install 'bayesdiv[language-models]'."
            ) from error
        return cls(AutoModelForCausalLM.from_pretrained(path, **arguments))

    def train(self, mode: bool = True) -> TransformersModel:  # noqa: FBT001, FBT002 - torch's own
        """Stays in evaluation mode, whatever is asked for."""
        super().train(mode=False)
        return self

    def forward(
        self, tokens: torch.Tensor, cache: Any = None, *, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        more: dict[str, Any] = {}
        if mask is not None:
            more["attention_mask"] = mask.long()
            more["position_ids"] = _positions(mask)[:, -tokens.shape[1] :]
        # A cache is of no use to a pass that will be differentiated.
        keeps = cache is not None or not torch.is_grad_enabled()
        if cache is not None:
            more[self._cache_name] = cache
        found = self.model(input_ids=tokens, use_cache=keeps, **more)
        return found.logits, getattr(found, self._cache_name, None)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token among those that are no padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _attention(
    mask: torch.Tensor | None, past: int, total: int, device: torch.device
) -> torch.Tensor:
    """Which of ``total`` tokens each new one may see, ``(batch or 1, 1, new, total)``."""
    times = torch.arange(total, device=device)
    causal = times[None, :] <= times[past:, None]
    if mask is None:
        return causal[None, None]
    # Padding sees itself: a row that sees nothing would be NaN.
    own = times[None, :] == times[past:, None]
    return (causal & mask[:, None, :] | own)[:, None]


class _seeded:
    """Draws inside from a generator of their own; the global one is left as it was."""

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        if self.seed is not None:
            self.before = torch.get_rng_state()
            torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        if self.seed is not None:
            torch.set_rng_state(self.before)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
