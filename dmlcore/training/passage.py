"""How a batch goes through the model and its gradient back: whole or in parts, in float32 or a lower precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import TrainingError
from dmlcore.models import EmbeddingModel

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SMALLEST_SCALE = 2.0**-14


class Passage:
    """Forward and backward of a training step.

    The model runs in the precision asked for; its weights, the embeddings, the losses and all gradients of weights are float32.
    With float16 the total is scaled before it goes back, so that small gradients do not round to 0, and a step whose gradients
    overflow is left out (Micikevicius et al., "Mixed Precision Training", ICLR 2018).

    With several parts the embeddings of all are computed first, without what a gradient needs. The losses see the whole batch.
    Then each part runs again and takes its own rows of the gradient back. The gradient is that of the whole batch, at the
    memory of one part and one more forward pass (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup", 2021). Random numbers of a part, as of dropout, are the same both times. Batch statistics are those of a part.

    Args:
        model: what trains.
        device: where it is.
        precision: `fp32`, `bf16` or `fp16`.
        parts: of a batch, >= 1.
        compiles: the model by torch.compile.
        computes_again: the backward pass computes parts of the model again, and so would move batch statistics twice.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        device: torch.device,
        *,
        precision: str = "fp32",
        parts: int = 1,
        compiles: bool = False,
        computes_again: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.parts = parts
        self.computes_again = computes_again
        self.dtype = DTYPES.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._call: Any = torch.compile(model) if compiles else model
        self._inputs: list[Tensor] = []
        self._random: list[list[Tensor]] = []

    def outputs(self, inputs: Tensor) -> Tensor:
        """What the model gives for a batch, [B, W] float32, to be handed to `backward` after the losses have used it."""
        if self.parts == 1:
            return self._run(inputs)
        self._inputs, self._random = list(torch.tensor_split(inputs, self.parts)), []
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        rows = []
        with torch.no_grad():
            for part in self._inputs:
                self._random.append(self.random_state())
                rows.append(self._run(part))
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)  # the second pass updates running means
        return torch.cat(rows).requires_grad_()

    def backward(self, total: Tensor, outputs: Tensor) -> None:
        """Add the gradient of the total to all parameters.

        Args:
            total: of the losses.
            outputs: of `outputs`, of which it was computed.
        """
        self._backward(self.scaler.scale(total))
        if self.parts == 1:
            return
        assert outputs.grad is not None
        for part, state, gradient in zip(self._inputs, self._random, torch.tensor_split(outputs.grad, self.parts), strict=True):
            self.set_random_state(state)
            again = self._run(part)
            if again.requires_grad:
                self._backward(again, gradient)
        self._inputs, self._random = [], []

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Divide gradients by what the total was scaled with."""
        self.scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> bool:
        """Let the optimiser take its step. False: its gradients overflowed in float16, and it was left out.

        Raises:
            TrainingError: they overflow whatever the total is scaled with.
        """
        if not self.scaler.is_enabled():
            optimiser.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(optimiser)
        self.scaler.update()
        if self.scaler.get_scale() < _SMALLEST_SCALE:
            raise TrainingError("gradients are not finite in float16, however small they are scaled. Use --precision bf16.")
        return self.scaler.get_scale() >= before

    def state_dict(self) -> dict[str, Any]:
        """The scale and its history."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)

    def _backward(self, value: Tensor, gradient: Tensor | None = None) -> None:
        statistics = [buffer.clone() for buffer in self.model.buffers()] if self.computes_again else []
        value.backward(gradient)
        with torch.no_grad():
            for buffer, after in zip(self.model.buffers(), statistics, strict=False):
                buffer.copy_(after)

    def _run(self, inputs: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self._call(inputs).float()

    def random_state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
