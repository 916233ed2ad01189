"""DiDi-Instruct's discriminator: how much more likely a canvas is under the target than under the student.

Paper: "Ultra-Fast Language Generation via Discrete Diffusion Divergence Instruct" (arXiv 2509.25035; official code
haoyangzheng-ai/didi-instruct). A DiT whose output layer is a small head with one logit a position, without final norm.
The published file holds PyTorch's legacy spectral norm; it is folded into the weight once, when it is read. The names
were taken from the official class, the published file was not seen: [verify on first load].
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.errors import UnmaskError
from unmask.models.config import DiTConfig, ModelConfig
from unmask.models.dit import Trunk
from unmask.models.hub import read_config, resolve_source

FILE = "discriminator.safetensors"


class Judge(nn.Module):
    """The head: hidden state to logit."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).squeeze(-1)


class Discriminator(Trunk):
    """Logits [B, W] of (target rather than student), all positions speaking of the same canvas."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.config = config
        self.output_layer = Judge(config.hidden_size)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings [B, W, C] of ids [B, W], or expected ones under softmax of real numbers [B, W, V]."""
        if tokens.is_floating_point():
            return tokens.softmax(-1).to(self.embedding.dtype) @ self.embedding
        return nn.functional.embedding(tokens, self.embedding)

    def forward(self, embeddings_BWC: Tensor, sigma_B: Tensor, positions_BW: Tensor, attend: Attend) -> Tensor:
        """Logits [B, W] of embeddings (see `embed`) at the noise level sigma = -log(alpha) [B], as it was trained."""
        return self.output_layer(self.run(embeddings_BWC, self.condition(sigma_B), positions_BW, attend))


def find_discriminator(source: str | Path) -> Path:
    """Its safetensors file: the one named, or that of a checkpoint (folder or hub name).

    Raises:
        UnmaskError: there is none.
    """
    path = Path(source).expanduser()
    path = path if path.is_file() else resolve_source(source) / FILE
    if not path.is_file():
        raise UnmaskError(f"no {FILE} in {path.parent}")
    return path


@cache
def load_discriminator(source: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Discriminator:
    """The discriminator in a file beside a config.json (see `find_discriminator`), ready to be called.

    Kept after the first call. Its weights take no gradient.

    Raises:
        UnmaskError: no such file, damaged, or of another shape than config.json says.
    """
    path = find_discriminator(source)
    config = ModelConfig.from_json(read_config(path.parent))
    if not isinstance(config, DiTConfig):
        raise UnmaskError(f"{path.parent} is a {config.family} checkpoint; a discriminator belongs to a DiT (mdlm)")
    # Weights made in inference mode could not take part in a gradient later on.
    with torch.inference_mode(False):
        with torch.device("meta"):
            model = Discriminator(config)
        _fill(model, folded(_read(path, device)), path, dtype)
        model.rotary_emb.to_empty(device=device)
    return model.eval().requires_grad_(False)


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise UnmaskError(f"{path} is damaged or incomplete ({' '.join(str(error).split())})") from None


def folded(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with each spectrally normalised weight divided by its norm u' W v."""
    out = {n: t for n, t in stored.items() if not n.endswith(("_orig", "_u", "_v"))}
    for name in [n for n in stored if n.endswith(".weight_orig")]:
        base = name.removesuffix("_orig")
        weight, u, v = stored[name], stored[f"{base}_u"], stored[f"{base}_v"]
        out[base] = weight / torch.dot(u, torch.mv(weight, v))
    return out


def _fill(model: Discriminator, stored: dict[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    stored.pop("rotary_emb.inv_freq", None)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in expected.keys() ^ stored.keys():
        raise UnmaskError(f"{path} {'lacks' if name in expected else 'also holds'} {name}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise UnmaskError(f"{name} is {list(stored[name].shape)} in {path.name}, {list(shape)} by config.json")
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in stored.items()}, assign=True)
