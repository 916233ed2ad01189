"""`unmask info`: what a checkpoint is and how it can be decoded, without reading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from unmask.cli.options import JsonOpt, ModelArg
from unmask.cli.output import Output
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.config import ModelConfig
    from unmask.models.families import Family

SMALL_FILES = ("*.json", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def info(model: ModelArg, json: JsonOpt = False) -> None:
    """Show what a checkpoint is: family, sizes, tokens, and which methods are sound on it."""
    out = Output.make(json=json)
    facts = describe(model)
    if json:
        out.object(facts)
        return
    sound = facts.pop("methods")
    table = Table.grid(padding=(0, 2, 0, 0))
    for key, value in facts.items():
        table.add_row(Text(key.replace("_", " "), style="dim"), Text(_words(key, value)))
    for name, reason in sound.items():
        mark = "sound" if reason is None else reason.removeprefix(f"{name}: ")
        table.add_row(Text(name, style="dim" if reason else "bold"), Text(mark, style="dim" if reason else ""))
    out.console.print(table)


def describe(source: str) -> dict[str, Any]:
    """Everything `unmask info --json` prints."""
    from unmask.lm import default_method
    from unmask.models.checkpoint import empty_model
    from unmask.models.config import ModelConfig
    from unmask.models.families import resolve
    from unmask.models.hub import read_config, read_json_if_there, read_tokenizer_facts

    folder = small_files(source)
    config_json = read_config(folder)
    config = ModelConfig.from_json(config_json)
    tokenizer_facts = read_tokenizer_facts(folder)
    family = resolve(config_json, read_json_if_there(folder / "generation_config.json"), tokenizer_facts)
    parameters = empty_model(config).count_parameters()
    names = {index: text for text, index in ((tokenizer_facts or {}).get("tokens") or {}).items()}
    return {
        "model": source,
        "family": family.name,
        "attention": family.attention,
        "prompt_attention": family.prompt,
        "token_shift": family.shift,
        "mask_id": family.mask_id,
        "mask_token": None if family.mask_id is None else names.get(family.mask_id),
        "eos_ids": list(family.eos_ids),
        "block_size": family.block_size,
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab": config.vocab_size,
        "parameters": parameters,
        "experts": experts(config, parameters),
        "bytes_on_disk": sum(p.stat().st_size for p in folder.glob("*.safetensors")) or None,
        "dtype": stored_dtype(folder) or config_json.get("dtype") or config_json.get("torch_dtype"),
        "context": config.max_positions,
        "rope": rope(config),
        "tokenizer": any((folder / name).is_file() for name in TOKENIZERS),
        "default_method": default_method(family),
        "methods": soundness(family),
    }


def experts(config: ModelConfig, parameters: int) -> dict[str, int] | None:
    """Experts a layer, how many of them a token goes to, and how many parameters it then meets."""
    moe = config.moe
    if moe is None:
        return None
    layers = config.num_layers - len(moe.dense_layers)
    idle = (moe.experts - moe.per_token) * 3 * moe.inner * config.hidden_size * layers
    return {"count": moe.experts, "per_token": moe.per_token, "active_parameters": parameters - idle}


def rope(config: ModelConfig) -> dict[str, Any]:
    """Base, scaling, and the rotated dimensions where these are not the whole head."""
    partial = {} if config.rotary_dim is None else {"dimensions": config.rotary_dim}
    return {"theta": config.rope_theta, **(config.rope_scaling or {}), **partial}


def soundness(family: Family) -> dict[str, str | None]:
    """For each method None if it is sound on the family, else the reason why not."""
    from unmask.decoding import METHODS

    out: dict[str, str | None] = {}
    for name, cls in sorted(METHODS.items()):
        try:
            cls().bind(family, 256)
            out[name] = None
        except UnmaskError as error:
            out[name] = str(error)
    return out


def small_files(source: str) -> Path:
    """The checkpoint's folder; of a hub checkpoint that is not there yet only the small files are fetched."""
    from unmask.models.hub import SHIPPED, resolve_source

    here = source in SHIPPED or Path(source).expanduser().is_dir()
    if here or source.count("/") != 1 or source.startswith((".", "/", "~")):
        return resolve_source(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(SMALL_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return resolve_source(source)  # fails in the same way, with the message for it


def stored_dtype(folder: Path) -> str | None:
    """The dtype of the first tensor, from the header of its file."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                stored = next((str(file.get_slice(n).get_dtype()) for n in file.keys()), None)  # noqa: SIM118
                return None if stored is None else DTYPES.get(stored, stored)
        except (SafetensorError, OSError) as error:
            raise UnmaskError(f"{path} is damaged or incomplete ({error})") from None
    return None


def _words(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "parameters":
        return f"{value:,} ({short(value)})"
    if key == "experts":
        return f"{value['count']} a layer, {value['per_token']} a token: {short(value['active_parameters'])} active"
    if key == "bytes_on_disk":
        return f"{value:,} ({short(value)}B)"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:.10g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def short(number: int) -> str:
    """12.3M and the like."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
