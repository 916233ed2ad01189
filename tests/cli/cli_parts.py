"""What the tests of the command line share: tiny checkpoints, and a tokenizer for them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from typer.testing import CliRunner, Result

from unmask.cli.app import app

MODELS = Path(__file__).parents[1] / "golden" / "models"
_ROOT = TemporaryDirectory()  # removed when the tests end
WORDS = ["tom", "has", "three", "boxes", "of", "twelve", "pens", "each", "so", "the", "answer", "is", "green", "apples"]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(folder: Path, vocab: int, *, eos: int, mask: int, template: str = TEMPLATE) -> None:
    """One word an id, special tokens where the checkpoint has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"{WORDS[i % len(WORDS)]}{i // len(WORDS) or ''}": i for i in range(vocab) if i not in (eos, mask)}
    words |= {"<end>": eos, "<mask>": mask}
    inner = Tokenizer(models.WordLevel(words, unk_token="tom"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", mask_token="<mask>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@cache
def talker() -> str:
    """The folder of llada-tiny with a tokenizer and a chat template; its context holds 96 tokens."""
    folder = Path(_ROOT.name) / "talker"
    shutil.copytree(MODELS / "llada-tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_sequence_length"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, 192, eos=181, mask=186)
    return str(folder)


def run(*arguments: str, stdin: str = "") -> Result:
    """`unmask ARGUMENTS` in this process; no stream is a terminal."""
    return CliRunner().invoke(app, list(arguments), input=stdin)
