"""The tokenizer of the nano models: byte-level BPE of 2,048 tokens from `wordmath`, every digit a token.

    python -m unmask.training.tokenizer configs/nano/tokenizer

writes tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` reads: end token
<|im_end|>, padding <|pad|>, mask <|mask|>, and the chat format of Qwen without its default system prompt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from unmask.tasks import get_task

VOCABULARY = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>", "<|pad|>")
# Problems are trained one at a time, so of a conversation the model is shown the newest message alone.
CHAT_TEMPLATE = (
    "{% set message = messages[-1] %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|pad|>",
    "mask_token": "<|mask|>",
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
    "add_prefix_space": False,
    "chat_template": CHAT_TEMPLATE,
}


def train_tokenizer(texts: Iterable[str], folder: Path, vocabulary: int = VOCABULARY) -> None:
    """Learns the merges from these texts and writes the two files into the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Digits first: numbers then never take part in a merge, so that arithmetic sees one token a digit.
    splits = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def task_texts(task: str = "wordmath", count: int = 100_000) -> Iterable[str]:
    """Questions and solutions of the training split, with the words of the chat format."""
    for problem in get_task(task).generate("train", count):
        yield f"user\n{problem.question}\nassistant\n{problem.solution}\n"


if __name__ == "__main__":
    train_tokenizer(task_texts(), Path(sys.argv[1]))
