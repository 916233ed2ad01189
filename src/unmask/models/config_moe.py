"""The mixture-of-experts part of a config: sizes, the router, and what of the official classes is not built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unmask.errors import UnmaskError

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Counts, widths and the router's rule; see `moe`."""

    experts: int
    per_token: int
    """Experts that each token goes to."""
    inner: int
    """Width of one expert."""
    shared_inner: int = 0
    """Width of the expert that every token goes to; 0: there is none."""
    dense_layers: tuple[int, ...] = ()
    """Layers that have an ordinary MLP."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    """A stored number per expert is added to the scores before experts are chosen."""
    weigh_bias: bool = False
    """It stays in the weights of the chosen experts."""
    renormalise: bool = False
    """The weights of a token's experts are divided by their sum."""
    groups: int = 1
    """Experts lie in groups of equal size, and a token may use `kept_groups` of them."""
    kept_groups: int = 1
    scale: float = 1.0
    """Factor on all weights."""

    def __post_init__(self) -> None:
        size, left = divmod(self.experts, self.groups)
        if left or (self.groups > 1 and size < 2):
            raise UnmaskError(f"config.json: {self.experts} experts do not form {self.groups} groups of at least 2")
        if not 1 <= self.kept_groups <= self.groups:
            raise UnmaskError(f"config.json: {self.kept_groups} of {self.groups} expert groups cannot be kept")
        reach = self.kept_groups * size
        if not 1 <= self.per_token <= reach:
            raise UnmaskError(f"config.json: num_experts_per_tok = {self.per_token} is not between 1 and {reach}")

    @property
    def limited(self) -> bool:
        """Some groups are out of a token's reach."""
        return self.kept_groups < self.groups


# Keys of LLaDAMoEModelLM, and the values that mean what is built here. None: as absent.
LLADA_MOE_ONLY: dict[str, tuple[Any, ...]] = {
    "moe_router_score_function": ("softmax", None),
    "norm_topk_prob": (False, None),
    "routed_scaling_factor": (1.0, None),
    "router_num_group": (None, 0, 1),
    "router_topk_group": (None, 0, 1),
    "shared_expert_intermediate_size": (None, 0),
    "attention_bias": (False, None),
    "clip_qkv": (None,),
}


def llada_moe(c: Json) -> MoeConfig:
    """The experts of LLaDA-MoE (arXiv 2509.24389)."""
    layers = c["num_hidden_layers"]
    sparse = c.get("moe_layer_freq") or [1] * layers
    sparse = [sparse] * layers if isinstance(sparse, int) else list(sparse)
    if len(sparse) != layers or not set(sparse) <= {0, 1}:
        raise UnmaskError(f"config.json: moe_layer_freq = {sparse!r} is not supported (only 0 or 1 for each layer)")
    biased = bool(c.get("moe_router_enable_expert_bias", False))
    return MoeConfig(
        experts=c["num_experts"],
        per_token=c["num_experts_per_tok"],
        inner=c["expert_intermediate_size"],
        dense_layers=tuple(i for i, is_sparse in enumerate(sparse) if not is_sparse),
        bias=biased,
        weigh_bias=biased,
    )


# Keys of LLaDA2MoeModelLM. Its router holds a bias whatever `moe_router_enable_expert_bias` says.
LLADA2_ONLY: dict[str, tuple[Any, ...]] = {
    "score_function": ("sigmoid",),
    "moe_router_enable_expert_bias": (True, None),
    "norm_topk_prob": (True,),
    "router_dtype": ("fp32", None),
    "norm_head": (False, None),
    "norm_softmax": (False, None),
    "use_rmsnorm": (True, None),
    "use_bias": (False, None),
    "use_qkv_bias": (False, None),
    "using_split_qkv_in_self_attention": (False, None),
    "sliding_window": (None,),
    "num_nextn_predict_layers": (0, None),
}


def llada2(c: Json) -> MoeConfig:
    """The experts of LLaDA2.0 and 2.1 (arXiv 2512.15745, 2602.08676), after Ling 2.0."""
    inner, shared = c["moe_intermediate_size"], c.get("num_shared_experts") or 0
    if shared and c.get("moe_shared_expert_intermediate_size") not in (None, inner):
        width = c["moe_shared_expert_intermediate_size"]
        raise UnmaskError(f"config.json: moe_shared_expert_intermediate_size = {width} is not supported (only {inner})")
    return MoeConfig(
        experts=c["num_experts"],
        per_token=c["num_experts_per_tok"],
        inner=inner,
        shared_inner=inner * shared,
        dense_layers=tuple(range(c.get("first_k_dense_replace") or 0)),
        scores="sigmoid",
        bias=True,
        renormalise=c["num_experts_per_tok"] > 1,
        groups=c.get("n_group") or 1,
        kept_groups=c.get("topk_group") or c.get("n_group") or 1,
        scale=float(c.get("routed_scaling_factor", 1.0)),
    )
