"""Tokenizers made from nano's."""

from __future__ import annotations

import json
from pathlib import Path

NANO = Path(__file__).parents[2] / "configs" / "nano" / "tokenizer"


def without_mask(folder: Path) -> Path:
    """Nano's tokenizer, whose mask token is an ordinary piece of text."""
    folder.mkdir(exist_ok=True)
    text = (NANO / "tokenizer.json").read_text().replace("<|mask|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    config = json.loads((NANO / "tokenizer_config.json").read_text())
    config.pop("mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
