"""Sequences from a causal network, symbol after symbol, as a Pyro distribution."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution

__all__ = ["AutoregressiveSequence"]

_MOST_ENUMERATED = 1_000_000
# Waiting for an accelerator costs as much as some steps; on the CPU looking is free.
_STEPS_BETWEEN_LOOKS = 8


class AutoregressiveSequence(TorchDistribution):
    r"""p(x) = Π_t p(x_t | x_<t) up to and including the first end symbol, by a causal network.

    Sequences are rows of ``max_length`` numbers; the first ``end`` is part of the sequence and what
    follows it is padding, also ``end``. A row without ``end`` is an event of its own, the sequence
    cut short, whose probability is the product of all its ``max_length`` factors: the probabilities
    of all rows sum to 1.

    Samples are drawn one symbol at a time from the network's own probabilities, with its cache, all
    rows at once; nothing truncates or tempers them, so that `log_prob` is the density that they
    come from. Sums are in single precision at least.

    Parameters
    ----------
    network
        See `bayesdiv.nn.sequences_torch` for the protocol, and for networks.
    max_length
        Symbols in a row, the end included.
    end
        The symbol that ends a sequence; None for sequences that all have ``max_length`` symbols.
    start
        The input that stands before the first symbol; None for ``end``, or the network's extra
        input ``num_symbols`` where there is no end.
    prompts
        ``(*batch_shape, prompt_length)``, what stands before the first symbol instead: a
        distribution for each, of what follows.
    prompt_mask
        Of the same shape, False at padding, which is to the left of shorter prompts.
    batch_size
        Rows that are sampled, or scored without gradients, at a time; None for all.
    validate_args
        As everywhere in Pyro; where on, `log_prob` looks at the values.

    Raises
    ------
    ValueError
        A setting outside its domain, prompts that are no whole numbers or have padding on the
        right; in `sample` and `log_prob` a network with active dropout; in `log_prob`, if
        validation is on, values of another length, outside the symbols or with symbols after the
        first end (the first such sequence is named).
    TypeError
        If the network does not say its ``num_symbols``.

    Examples
    --------
    >>> from bayesdiv.nn.sequences_torch import CharacterGRU
    >>> law = AutoregressiveSequence(CharacterGRU(3, seed=0), 4, end=0)
    >>> law.sample((5,)).shape
    torch.Size([5, 4])
    >>> round(law.log_prob(law.enumerate_support()).exp().sum().item(), 5)
    1.0
    """

    arg_constraints: dict[str, Any] = {}
    has_enumerate_support = True

    def __init__(
        self,
        network: Any,
        max_length: int,
        *,
        end: int | None,
        start: int | None = None,
        prompts: torch.Tensor | None = None,
        prompt_mask: torch.Tensor | None = None,
        batch_size: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        num_symbols = getattr(network, "num_symbols", None)
        if not isinstance(num_symbols, int):
            raise TypeError(
                "network must have an integer attribute num_symbols, the width of its logits, got "
                f"{type(network).__name__} with {num_symbols!r}."
            )
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value is None and name == "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
        if end is not None and not 0 <= end < num_symbols:
            raise ValueError(f"end must be among the {num_symbols} symbols or None, got {end!r}.")
        if prompts is not None and start is not None:
            raise ValueError(
                f"start must be None where prompts are given, got {start!r}; put it in front of "
                "each prompt."
            )
        self.network = network
        self.num_symbols = num_symbols
        self.max_length = max_length
        self.end = end
        self.start = start if start is not None else num_symbols if end is None else end
        self.batch_size = batch_size
        self.prompts = prompts
        self.prompt_mask = _checked_mask(prompts, prompt_mask)
        batch_shape = torch.Size() if prompts is None else prompts.shape[:-1]
        super().__init__(batch_shape, torch.Size([max_length]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.num_symbols - 1), 1)

    def expand(
        self, batch_shape: Any, _instance: AutoregressiveSequence | None = None
    ) -> AutoregressiveSequence:
        new = self._get_checked_instance(AutoregressiveSequence, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in ("network", "num_symbols", "max_length", "end", "start", "batch_size"):
            setattr(new, name, getattr(self, name))
        new.prompts, new.prompt_mask = (
            None if part is None else part.expand(batch_shape + part.shape[-1:])
            for part in (self.prompts, self.prompt_mask)
        )
        super(AutoregressiveSequence, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def with_network(self, network: Any) -> AutoregressiveSequence:
        """The same law by another network."""
        return self._rebuilt(network, self.prompts, self.prompt_mask)

    def trainable_copy(self) -> AutoregressiveSequence:
        """The same law by a copy of the network whose parameters take gradients."""
        return self.with_network(copy.deepcopy(self.network).requires_grad_())

    def at(self, contexts: torch.Tensor) -> AutoregressiveSequence:
        """The law after some of the prompts, chosen by their numbers ``(k,)``.

        Raises
        ------
        ValueError
            Unless there is one batch dimension, of prompts.
        """
        if self.prompts is None or self.prompts.ndim != 2:
            raise ValueError(
                "contexts exist where prompts of shape (num_contexts, prompt_length) were given, "
                f"got batch_shape {tuple(self.batch_shape)}."
            )
        mask = None if self.prompt_mask is None else self.prompt_mask[contexts]
        return self._rebuilt(self.network, self.prompts[contexts], mask)

    def _rebuilt(
        self, network: Any, prompts: torch.Tensor | None, mask: torch.Tensor | None
    ) -> AutoregressiveSequence:
        return AutoregressiveSequence(
            network,
            self.max_length,
            end=self.end,
            start=self.start if prompts is None else None,
            prompts=prompts,
            prompt_mask=mask,
            batch_size=self.batch_size,
            validate_args=self._validate_args,
        )

    # Which symbols count

    def mask(self, value: torch.Tensor) -> torch.Tensor:
        """True up to and including the first end, ``(..., max_length)``."""
        if self.end is None:
            return torch.ones_like(value, dtype=torch.bool)
        ends = (value == self.end).long()
        # By position, not by symbol: the end that counts looks like the padding after it.
        return ends.cumsum(-1) == ends

    def length(self, value: torch.Tensor) -> torch.Tensor:
        """Symbols of each sequence, its end included, ``(...)``."""
        return self.mask(value).sum(-1)

    # Scores

    def token_log_probs(self, value: torch.Tensor) -> torch.Tensor:
        """log p(x_t | x_<t), 0 at padding, ``(..., max_length)``; they sum to `log_prob`."""
        if self._validate_args:
            self._validate_sample(value)
        _check_no_dropout(self.network)
        lead = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        rows = value.expand(lead + value.shape[-1:]).reshape(-1, value.shape[-1])
        prefix, prefix_mask = self._prefix(lead)
        parts = [
            self._score(
                rows[part], prefix[part], None if prefix_mask is None else prefix_mask[part]
            )
            for part in self._parts(len(rows), whole=torch.is_grad_enabled())
        ]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts)
        return scores.reshape(lead + value.shape[-1:])

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.token_log_probs(value).sum(-1)

    def _score(
        self, rows: torch.Tensor, prefix: torch.Tensor, prefix_mask: torch.Tensor | None
    ) -> torch.Tensor:
        inputs = torch.cat([prefix, rows[:, :-1]], dim=1)
        more = {}
        if prefix_mask is not None:
            real = torch.ones_like(rows[:, :-1], dtype=torch.bool)
            more["mask"] = torch.cat([prefix_mask, real], dim=1)
        logits = self.network(inputs, **more)[0][:, -rows.shape[1] :]
        chosen = _log_softmax(logits).gather(-1, rows[..., None])[..., 0]
        return torch.where(self.mask(rows), chosen, torch.zeros_like(chosen))

    # Samples

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008 - torch's own
        return self.sample_with_log_prob(sample_shape)[0]

    @torch.no_grad()
    def sample_with_log_prob(
        self,
        sample_shape: Any = torch.Size(),  # noqa: B008 - torch's own
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequences, and the log-probabilities that they were drawn with; no second pass."""
        _check_no_dropout(self.network)
        shape = self._extended_shape(torch.Size(sample_shape))
        prefix, prefix_mask = self._prefix(shape[:-1])
        drawn = [
            self._draw(prefix[part], None if prefix_mask is None else prefix_mask[part])
            for part in self._parts(len(prefix), whole=False)
        ]
        tokens, log_prob = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return tokens.reshape(shape), log_prob.reshape(shape[:-1])

    def _draw(
        self, prefix: torch.Tensor, prefix_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(prefix)
        padding = 0 if self.end is None else self.end
        tokens = prefix.new_full((rows, self.max_length), padding)
        finished = torch.zeros(rows, dtype=torch.bool, device=prefix.device)
        every = 1 if prefix.device.type == "cpu" else _STEPS_BETWEEN_LOOKS
        total: Any = 0.0
        fresh, cache, seen = prefix, None, prefix_mask
        for time in range(self.max_length):
            more = {} if seen is None else {"mask": seen}
            logits, cache = self.network(fresh, cache, **more)
            log_probs = _log_softmax(logits[:, -1])
            drawn = torch.multinomial(log_probs.exp(), 1)
            chosen = log_probs.gather(1, drawn)[:, 0]
            total = total + torch.where(finished, torch.zeros_like(chosen), chosen)
            if self.end is not None:
                drawn = torch.where(finished[:, None], self.end, drawn)
                finished = finished | (drawn[:, 0] == self.end)
            tokens[:, time] = drawn[:, 0]
            looks = self.end is not None and time % every == every - 1
            if looks and bool(finished.all()):
                break
            fresh = drawn
            if seen is not None:
                seen = torch.cat([seen, torch.ones_like(drawn, dtype=torch.bool)], dim=1)
        return tokens, total

    def enumerate_support(self, expand: bool = True) -> torch.Tensor:  # noqa: FBT001, FBT002
        """Every sequence, ``(num_sequences, *batch_shape, max_length)``.

        Raises
        ------
        ValueError
            If there are more than a million.
        """
        size, width = self.num_symbols, self.max_length
        going = size if self.end is None else size - 1
        count = going**width
        if self.end is not None:
            count += sum(going**time for time in range(width))
        if count > _MOST_ENUMERATED:
            raise ValueError(
                f"{size} symbols and max_length {width} make about 10^{math.log10(count):.0f} "
                f"sequences, more than {_MOST_ENUMERATED}; sample instead."
            )
        device = self._device()
        symbols = torch.arange(size, device=device)
        padding = 0 if self.end is None else self.end
        done = []
        open_rows = torch.full((1, width), padding, dtype=torch.long, device=device)
        for time in range(width):
            open_rows = open_rows.repeat_interleave(size, 0)
            open_rows[:, time] = symbols.repeat(len(open_rows) // size)
            if self.end is not None:
                ended = open_rows[:, time] == self.end
                done.append(open_rows[ended])
                open_rows = open_rows[~ended]
        rows = torch.cat([*done, open_rows])
        rows = rows.reshape((-1,) + (1,) * len(self.batch_shape) + (width,))
        return rows.expand((-1, *self.batch_shape, -1)) if expand else rows

    # Rows

    def _device(self) -> torch.device:
        if self.prompts is not None:
            return self.prompts.device
        parameters = getattr(self.network, "parameters", None)
        first = None if parameters is None else next(iter(parameters()), None)
        return torch.device("cpu") if first is None else first.device

    def _prefix(self, lead: torch.Size) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What stands before each of ``lead.numel()`` rows, and which of it is no padding."""
        if self.prompts is None:
            shape = (lead.numel(), 1)
            return torch.full(shape, self.start, dtype=torch.long, device=self._device()), None
        width = self.prompts.shape[-1]
        prefix = self.prompts.expand(lead + (width,)).reshape(-1, width)
        if self.prompt_mask is None:
            return prefix, None
        return prefix, self.prompt_mask.expand(lead + (width,)).reshape(-1, width)

    def _parts(self, rows: int, *, whole: bool) -> Iterator[slice]:
        size = rows if whole or self.batch_size is None else self.batch_size
        for begin in range(0, rows, max(size, 1)):
            yield slice(begin, begin + size)

    def _validate_sample(self, value: torch.Tensor) -> None:
        if value.is_floating_point() or value.dtype == torch.bool:
            raise ValueError(f"value must hold whole numbers, got dtype {value.dtype}.")
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"value must have shape (..., {self.max_length}), got {tuple(value.shape)}; pad "
                f"shorter sequences with end = {self.end}."
            )
        bad = (value < 0) | (value >= self.num_symbols)
        if self.end is not None:
            bad = bad | (~self.mask(value) & (value != self.end))
        if bool(bad.any()):
            row = value[bad.any(-1)][0].tolist()
            raise ValueError(
                f"value must hold symbols below {self.num_symbols}, and nothing but end = "
                f"{self.end} after the first end, got {row}."
            )


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """In single precision at least: half precision loses the sum over a sequence."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits.log_softmax(-1)


def _checked_mask(prompts: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask of prompts, None where nothing is padding."""
    if prompts is None:
        if mask is not None:
            raise ValueError("prompt_mask needs prompts, got None.")
        return None
    if prompts.is_floating_point() or prompts.ndim < 1 or prompts.shape[-1] < 1:
        raise ValueError(
            "prompts must hold whole numbers, shape (*batch_shape, prompt_length) with at least "
            f"one each, got {prompts.dtype} of shape {tuple(prompts.shape)}."
        )
    if mask is None:
        return None
    if mask.shape != prompts.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"prompt_mask must be boolean of the prompts' shape {tuple(prompts.shape)}, got "
            f"{mask.dtype} of shape {tuple(mask.shape)}."
        )
    if not bool(mask[..., -1].all()) or bool((mask[..., :-1] & ~mask[..., 1:]).any()):
        raise ValueError(
            "prompt_mask must be False only to the left of a prompt: pad on the left, so that what "
            "follows comes right after its last symbol."
        )
    return None if bool(mask.all()) else mask


def _check_no_dropout(network: Any) -> None:
    """Raise if a pass of the network is random: samples and scores would have other laws."""
    if not getattr(network, "training", False):
        return
    for name, module in network.named_modules():
        rate = getattr(module, "p", None) if "Dropout" in type(module).__name__ else None
        rate = getattr(module, "dropout", 0.0) if rate is None else rate
        if module.training and isinstance(rate, float) and rate > 0.0:
            raise ValueError(
                f"network must not drop units where sequences are sampled and scored, got a rate "
                f"of {rate} in {name or type(module).__name__!r} in training mode; call "
                "network.eval(), or set the rate to 0."
            )
