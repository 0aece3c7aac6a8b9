"""A prior that is a pool of codes: it can be drawn from and has no density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from bayesdiv.divergences import get_divergence, list_divergences

__all__ = ["EmpiricalPrior"]


class EmpiricalPrior(TorchDistribution):
    r"""p*(z), the law of z = h(e) for a row e of a pool: an implicit prior.

    `sample` draws rows uniformly with replacement and encodes them. Draws are constants: no
    gradient reaches the pool or the encoder, and there is no reparameterisation. Nothing else is
    known of the law, so that objectives on log p(z) do not exist for it; objectives on samples, and
    those on a learnt log-ratio, do.

    Parameters
    ----------
    pool
        ``(n, *event_shape)``, or ``(n, *row_shape)`` with an encoder. It is not copied: a strided
        view, such as ``signal.unfold(0, 200, 2)``, takes no memory.
    encoder
        From ``(m, *row_shape)`` to ``(m, *event_shape)``, fixed; None for a pool of codes. It runs
        on the drawn rows only; where the same rows are drawn often, a pool of codes is faster.
    validate_args
        As everywhere in Pyro.

    Raises
    ------
    TypeError
        If the pool is no floating tensor or the encoder cannot be called.
    ValueError
        If the pool is empty, a scalar or not finite; an encoder that returns other than one row of
        codes a row, or with batch normalisation or dropout in training mode, whose codes would
        depend on the rows drawn with them.
    NotImplementedError
        From ``log_prob`` and ``rsample``, naming what to use instead.

    Examples
    --------
    >>> import pyro, torch
    >>> prior = EmpiricalPrior(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    >>> with pyro.plate("rows", 5):
    ...     z = pyro.sample("z", prior)
    >>> tuple(z.shape), prior.event_shape
    ((5, 2), torch.Size([2]))
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(
        self,
        pool: torch.Tensor,
        encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not torch.is_tensor(pool) or not pool.is_floating_point():
            kind = f"a tensor of {pool.dtype}" if torch.is_tensor(pool) else type(pool).__name__
            raise TypeError(f"pool must be a floating tensor, got {kind}.")
        if pool.ndim == 0 or len(pool) == 0:
            raise ValueError(
                f"pool must have shape (n, ...) with at least one row, got {tuple(pool.shape)}."
            )
        if encoder is not None and not callable(encoder):
            raise TypeError(f"encoder must be callable or None, got {type(encoder).__name__}.")
        _check_mode(encoder)
        self.pool, self.encoder = pool.detach(), encoder
        first = self._encode(self.pool[:2])
        if not bool(first.isfinite().all()):
            raise ValueError("pool must give finite codes, got NaN or infinity in its first rows.")
        super().__init__(torch.Size(), first.shape[1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> EmpiricalPrior:
        """The same law, drawn independently for each element of ``batch_shape``."""
        new = self._get_checked_instance(EmpiricalPrior, _instance)
        new.pool, new.encoder = self.pool, self.encoder
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Codes ``(*sample_shape, *batch_shape, *event_shape)``, from torch's global generator."""
        shape = torch.Size(sample_shape) + self.batch_shape
        index = torch.randint(len(self.pool), (shape.numel(),), device=self.pool.device)
        return self._encode(self.pool[index]).reshape(shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        raise NotImplementedError(
            "EmpiricalPrior draws rows of a pool, which cannot be differentiated; use sample()."
        )

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(
            "EmpiricalPrior has samples but no density, so that objectives on log p(z) do not "
            "exist for it. Use bayesdiv.inference.adversarial.AdversarialInference, which learns "
            f"the log-ratio, with {', '.join(_learnable())}; or, there or as bayesdiv.pyro."
            "objective(..., space='codes'), a divergence of samples: "
            f"{', '.join(list_divergences('two_sample'))}."
        )

    @torch.no_grad()
    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        if self.encoder is None:
            return rows
        codes = self.encoder(rows)
        if not torch.is_tensor(codes) or codes.ndim == 0 or len(codes) != len(rows):
            found = tuple(codes.shape) if torch.is_tensor(codes) else type(codes).__name__
            raise ValueError(
                f"encoder must return one row of codes a row, shape ({len(rows)}, ...), got {found}"
                f" for rows of shape {tuple(rows.shape)}."
            )
        return codes.detach()


def _learnable() -> list[str]:
    """Names of f-divergences with a path gradient, which a learnt log-ratio can serve."""
    return [
        name
        for name in list_divergences("f")
        if getattr(get_divergence(name), "has_path_gradient", False)
    ]


def _check_mode(encoder: Any) -> None:
    if not isinstance(encoder, torch.nn.Module):
        return
    for name, part in encoder.named_modules():
        if part.training and isinstance(part, _BatchNorm | _DropoutNd):
            raise ValueError(
                f"encoder must give each row a code of its own, but {name or 'it'} "
                f"({type(part).__name__}) is in training mode; call encoder.eval() first."
            )
