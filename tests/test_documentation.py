"""What the documentation shows runs: examples in docstrings, and Python blocks of the pages."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = {"bayesdiv": "bayesdiv", "models": "bayesdiv.models", "inference": "bayesdiv.inference"}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def modules_with_examples() -> list[str]:
    """Dotted names of the modules whose text holds a prompt."""
    names = []
    for folder, name in TREES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                names.append(".".join([name, *parts]).removesuffix(".__init__"))
    return names


def pages_with_blocks() -> list[str]:
    """Paths of the Markdown pages that hold Python blocks."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        page.relative_to(ROOT).as_posix()
        for page in pages
        if BLOCK.search(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert results.attempted > 0
    assert results.failed == 0, f"python -m doctest on {name} shows what differs"


@pytest.mark.parametrize("page", pages_with_blocks())
def test_page_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    namespace: dict = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        # Blank lines in front make a traceback's line number that of the page.
        padding = "\n" * text[: match.start(1)].count("\n")
        exec(compile(padding + match.group(1), page, "exec"), namespace)  # noqa: S102


def test_a_failing_block_would_be_found():
    blocks = BLOCK.findall(
        "text\n\n```python\na = 1\n```\n\n```text\nb\n```\n\n```python\nc\n```\n"
    )
    assert blocks == ["a = 1\n", "c\n"]
