"""dParallel: models distilled to be certain early, decoded by an entropy threshold.

Paper: "dParallel: Learnable Parallel Decoding for dLLMs" (arXiv 2509.26488; official code czg1225/dParallel). The
loop is Fast-dLLM's; a forward commits every position of the block whose distribution has an entropy of at most `tau`
nats, and always the one with the lowest. The published numbers are without a cache. On purpose different: entropies
are float32 and compared with <= for both families, a refresh that completes a block is not followed by a window.

    unmask generate Zigeng/dParallel-LLaDA-8B-instruct "..." --method dparallel --set tau=0.5
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.decoding.method import option, register
from unmask.decoding.sampling import ScoreRule
from unmask.decoding.select import Entropy, Rule, Static
from unmask.decoding.windows import RefreshedBlocks, WindowState


@register("dparallel", title="dParallel", arxiv="2509.26488")
@dataclass(frozen=True, kw_only=True)
class DParallel(RefreshedBlocks):
    """Blocks without a cache (or with Fast-dLLM's), selection by entropy."""

    tau: float = option(0.5, "entropy in nats up to which a position is committed", alias=("threshold",), low=0.0)

    def own_rule(self) -> Rule:
        return Static() if self.steps is not None else Entropy(self.tau)

    def confidence(self, state: WindowState) -> ScoreRule:
        return ScoreRule("raw", "entropy" if self.select is None else "prob", ban=(state.facts.mask_id,))
