"""The model in training: pairs -> a loss on the answers' tokens, an update, state that a checkpoint holds, a folder."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tokenmill.tokenizer.vision.training.parallel import Workers
from tokenmill.training.captioner.answers import IGNORED, Answers
from tokenmill.training.captioner.config import CaptionerTrainConfig
from tokenmill.training.captioner.pairs import Example
from tokenmill.training.lora import merged, with_lora
from tokenmill.training.model.optimizer import Muon, schedule, set_learning_rate


class Learner:
    """Model, processor and optimizers. `dtype`: of the products; weights that learn are float32. `passes`: pairs at a
    time. Every worker holds a copy and takes the same updates.
    """

    def __init__(
        self,
        made: tuple[Any, Any],
        config: CaptionerTrainConfig,
        num_steps: int,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        passes: int = 8,
        recompute: bool = False,
        workers: Workers | None = None,
    ):
        model, self.processor = made
        self._config, self._num_steps, self._passes = config, num_steps, passes
        self._dtype, self._device = dtype, torch.device(device)
        self._workers = workers or Workers()
        if config.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                model = with_lora(model, config.lora, "captioner.train.lora")
        elif next(model.parameters()).dtype != torch.float32:
            model = model.float()
        if recompute:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model.to(self._device)
        ends = model.generation_config.eos_token_id
        known = {ends} if isinstance(ends, int) else set(ends or ())
        self._answers = Answers(self.processor, known, config.ask.max_tokens)
        inner = model.get_base_model() if config.lora is not None else model
        self._keeps_last = "logits_to_keep" in inspect.signature(inner.forward).parameters
        self._learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizers = _optimizers(model, self._learning, config, dtype)

    def step(self, examples: Sequence[Example], step: int) -> float:
        """One update by this worker's part of the step's pairs; the loss in nats a token, of all workers' pairs."""
        self.model.train()
        torch.manual_seed(
            int(np.random.SeedSequence([self._config.seed, step, self._workers.rank]).generate_state(1)[0])
        )
        total = sum(len(self._answers.ids(example.caption)) for example in examples)
        mine = examples[self._workers.rank :: self._workers.world]
        found = torch.zeros((), device=self._device)
        for loss in self._losses(mine):
            (loss / total).backward()
            found += loss.detach() / total
        gradients = [self._gradient(weight) for weight in self._learning.values()]
        self._workers.average([found, *gradients])
        for value in (found, *gradients):
            value *= self._workers.world  # the mean of the workers' parts, and wanted is their sum
        torch.nn.utils.clip_grad_norm_(self._learning.values(), self._config.optimizer.clip_norm)
        rates = self._config.optimizer.rates
        set_learning_rate(self._optimizers, rates, schedule(rates, step, self._num_steps))
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(found)

    @torch.no_grad()
    def loss(self, examples: Sequence[Example]) -> float:
        """In nats a token, without dropout."""
        self.model.eval()
        total = sum(len(self._answers.ids(example.caption)) for example in examples)
        return float(sum(loss.item() for loss in self._losses(examples)) / total)

    def state(self) -> dict[str, Any]:
        """What learns, and the optimizers."""
        weights = {name: weight.detach() for name, weight in self._learning.items()}
        return {"weights": weights, "optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        with torch.no_grad():
            for name, weight in self._learning.items():
                weight.copy_(state["weights"][name])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def save(self, folder: Path) -> None:
        """Model and processor for plain transformers. LoRA is merged into the weights: it is the last thing to do."""
        self.model.eval()
        merged(self.model).save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _losses(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        """Of each pass: the sum over its answers' tokens, in nats."""
        for start in range(0, len(examples), self._passes):
            inputs, targets = self._answers.encoded(examples[start : start + self._passes])
            moved = {name: value.to(self._device) for name, value in inputs.items()}
            how: dict[str, Any] = {"use_cache": False}
            if self._keeps_last:  # logits of prompts would fill the memory
                first = int((targets != IGNORED).any(0).nonzero()[0])
                how["logits_to_keep"] = targets.shape[1] - first + 1
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
                logits = self.model(**moved, **how).logits
            wanted = targets[:, -logits.shape[1] :][:, 1:].to(self._device)
            yield nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
            )

    @staticmethod
    def _gradient(weight: nn.Parameter) -> Tensor:
        """Zeros where this worker had no pair, or the weight no part in them."""
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad


def _optimizers(
    model: Any, learning: dict[str, nn.Parameter], config: CaptionerTrainConfig, dtype: torch.dtype
) -> list[Optimizer]:
    """AdamW and, with `muon_lr`, Muon for the matrices of the layers. Norms and biases do not decay."""
    rates = config.optimizer.rates
    matrices: list[nn.Parameter] = []
    by_adam = list(learning.values())
    if rates.muon_lr is not None:
        tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
        tables.add(id(model.get_output_embeddings().weight))
        matrices = [weight for weight in by_adam if weight.ndim == 2 and id(weight) not in tables]
        taken = {id(weight) for weight in matrices}
        by_adam = [weight for weight in by_adam if id(weight) not in taken]
    groups = [
        {"params": [weight for weight in by_adam if weight.ndim >= 2], "weight_decay": rates.weight_decay},
        {"params": [weight for weight in by_adam if weight.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (rates.beta1, rates.beta2)
    made: list[Optimizer] = [AdamW([g for g in groups if g["params"]], lr=rates.lr, betas=betas, fused=True)]
    if rates.muon_lr is not None and matrices:
        made.append(Muon(matrices, rates.muon_lr, rates.weight_decay, dtype))
    return made
