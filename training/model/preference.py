"""Direct preference optimization (Rafailov et al., arXiv 2305.18290) of drawings, with Emu3's next-token term (3.4).

Of two drawings of a prompt one was chosen. The loss of a pair is `-log sigmoid(beta (r_chosen - r_rejected))`, where r
is how much likelier the model makes a drawing than the model that it started from did; beside it, times `ntp_weight`,
the mean next-token loss of the chosen one. Its gradient is one of token losses, weighted by document: so hidden states
are computed once, and the head twice, in chunks (training/model/loss.py).
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import Emu3ForCausalLM

from tokenmill.tokenizer.sequence import Kind
from tokenmill.training.config import LossWeights, PreferenceConfig
from tokenmill.training.model.loss import linear_cross_entropy, next_tokens
from tokenmill.training.model.model import PackLoss, tensors
from tokenmill.training.pack import PADDING, Pack

_ALL = LossWeights(text=1.0, vision=1.0)
_TOLD = ("preference", "margin", "right", "chosen_nll")


class PreferenceLoss(PackLoss):
    """The forward pass over a pack of pairs: documents 2k and 2k + 1 are chosen and rejected drawing of one prompt."""

    num_sums = 1 + len(_TOLD)

    def __init__(self, lm: Emu3ForCausalLM, config: PreferenceConfig):
        super().__init__(lm, _ALL)
        self.config = config

    def loss_weight(self, pack: Pack) -> float:
        """Its pairs."""
        return (int(pack.documents.max()) + 1) // 2

    def inputs(self, pack: Pack, device: torch.device) -> list[torch.Tensor]:
        """Those of `forward`."""
        reference = np.empty(0, np.float32) if pack.reference is None else pack.reference
        return [*tensors(pack, device), torch.from_numpy(reference).to(device)]

    def told(self, sums: list[float]) -> dict[str, float]:
        """Means over pairs: loss, margin of rewards, whether that is positive, loss of a token of the chosen one."""
        return {name: value / sums[0] for name, value in zip(_TOLD, sums[1:], strict=True)}

    def forward(  # type: ignore[override]
        self,
        ids_BT: torch.Tensor,
        kinds_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        documents_BT: torch.Tensor,
        reference_D: torch.Tensor | None = None,
    ) -> Any:
        """The sum of the losses of the pairs of one pack, B = 1, and what `told` makes means of, (num_sums,).

        `reference_D`: log-probability of each drawing under the model that this one started from; without it the result
        is what becomes the reference, that under this model, float32 (D,), without gradient.
        """
        hidden_ND = self.hidden(ids_BT, positions_BT, documents_BT).flatten(0, 1)
        targets, kinds, weights = next_tokens(ids_BT, kinds_BT, documents_BT, _ALL)
        drawn = ((weights > 0) & (kinds != Kind.TEXT)).float()  # 0 in the prompt
        targets_N, drawn_N = self.own(targets).flatten(), self.own(drawn).flatten()
        document_N = self.own(documents_BT, PADDING).flatten().long()
        head = self.head
        _, nll_N = linear_cross_entropy(hidden_ND.detach(), head.detach(), targets_N, drawn_N)
        count = int(documents_BT.max()) + 1
        nll_D, num_tokens_D = (_by_document(x_N, document_N, count) for x_N in (nll_N * drawn_N, drawn_N))
        if self.split is not None and count:
            nll_D, num_tokens_D = self.split.sum(nll_D), self.split.sum(num_tokens_D)
        if reference_D is None:
            return -nll_D
        reward_D = -(nll_D + reference_D) * self.config.beta
        margin_P = reward_D[0::2] - reward_D[1::2]
        losses_P = -functional.logsigmoid(margin_P)
        chosen_nll_P = nll_D[0::2] / num_tokens_D[0::2].clamp(min=1)
        # d loss / d nll of a drawing: what the pair still has to learn; and for the chosen one the next-token term
        weight_D = torch.sigmoid(-margin_P).repeat_interleave(2) * self.config.beta
        weight_D[1::2] *= -1
        weight_D[0::2] += self.config.ntp_weight / num_tokens_D[0::2].clamp(min=1)
        weighted, _ = linear_cross_entropy(hidden_ND, head, targets_N, drawn_N * _of(weight_D, document_N))
        value = losses_P.sum() + self.config.ntp_weight * chosen_nll_P.sum()
        parts = [torch.ones_like(margin_P), losses_P, margin_P, (margin_P > 0).float(), chosen_nll_P]
        sums = torch.stack([part.sum() for part in parts])
        if self.split is not None and self.split.number:  # of a pair that is shared, the first tells
            value, sums = torch.zeros_like(value), torch.zeros_like(sums)
        # the value of the loss, with the gradient of the weighted sum
        return weighted + (value - weighted).detach(), sums


def _by_document(x_N: torch.Tensor, document_N: torch.Tensor, count: int) -> torch.Tensor:
    """Sums of `x_N`, which is 0 in padding, by document: (count,)."""
    return x_N.new_zeros(count).index_add_(0, document_N.clamp(min=0), x_N) if count else x_N.new_zeros(0)


def _of(x_D: torch.Tensor, document_N: torch.Tensor) -> torch.Tensor:
    return x_D[document_N.clamp(min=0)] if len(x_D) else x_D.new_zeros(len(document_N))
