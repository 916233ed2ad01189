"""Where a checkpoint's files come from: a folder, or the Hugging Face hub (no code, no pickles)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError

ALLOWED = ("*.json", "*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")

SHIPPED = ("nano", "nano-ar")
"""Checkpoints that come with the package."""


def resolve_source(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint: that of a shipped one, a local one as it is, a hub name after download (or from the
    cache).

    Raises:
        UnmaskError: no such folder, or the hub does not have it, or the hub cannot be reached.
    """
    if name_or_path in SHIPPED:
        return Path(__file__).parents[1] / "nano" / str(name_or_path)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if folder.is_file():
        raise UnmaskError(f"{name} is a file; give the checkpoint's folder")
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") != 1:
        raise UnmaskError(f"no folder {name} (nor a hub name of the form owner/name, nor {' or '.join(SHIPPED)})")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = name if revision is None else f"{name} at {revision}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(ALLOWED)))
    except GatedRepoError:
        raise UnmaskError(f"{wanted} is gated: accept its terms on the hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UnmaskError(f"no folder {name}, and the hub has no {wanted} (or it is private)") from None
    except HFValidationError:
        raise UnmaskError(f"no folder {name}, and it is not a valid hub name") from None
    except LocalEntryNotFoundError:
        raise UnmaskError(f"no folder {name}, and {wanted} is not cached and the hub cannot be reached") from None
    except OSError as error:
        raise UnmaskError(f"could not fetch {wanted}: {' '.join(str(error).split())}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UnmaskError: the file is missing, unreadable or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnmaskError(f"no {path.name} in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise UnmaskError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise UnmaskError(f"cannot read {path}: not a JSON object")
    return content


def read_json_if_there(path: Path) -> dict[str, Any] | None:
    """As `read_json`, None when there is no such file."""
    return read_json(path) if path.is_file() else None


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json."""
    return read_json(folder / "config.json")


def read_tokenizer_facts(folder: Path) -> dict[str, Any] | None:
    """What the tokenizer files state, None without files.

    {"tokens": {text: id} of the added tokens, "mask_token": text or None}
    """
    settings = read_json_if_there(folder / "tokenizer_config.json")
    tokenizer = read_json_if_there(folder / "tokenizer.json")
    added = read_json_if_there(folder / "added_tokens.json")
    if settings is None and tokenizer is None and added is None:
        return None
    tokens = {str(text): int(index) for text, index in (added or {}).items()}
    tokens |= {t["content"]: t["id"] for t in (tokenizer or {}).get("added_tokens", [])}
    decoder = (settings or {}).get("added_tokens_decoder", {})
    tokens |= {t["content"]: int(index) for index, t in decoder.items()}
    mask = (settings or {}).get("mask_token")
    return {"tokens": tokens, "mask_token": mask["content"] if isinstance(mask, dict) else mask}
