"""A training run in slices: weights, their average, optimiser, random numbers, checkpoint.

The optimiser is that of `posterior.training` (Muon for convolution kernels, Adam for the rest). The
rate rises over the first steps and falls to zero along a cosine of the steps, over however many
slices they are spread.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from posterior.errors import FileProblem, ResumeError, TrainingError
from posterior.folders import replacing
from posterior.heap import kept
from posterior.priors.photo import compute_dtype
from posterior.training import Muon

SAVE_EVERY = 120.0  # seconds
SAY_EVERY = 60.0
SCORE_EVERY = 600.0
_WARM = 200  # steps

Loss = Callable[[nn.Module, np.random.Generator], Tensor]


def autocast() -> torch.autocast:
    """bfloat16 inside convolutions and products, where this CPU has it."""
    dtype = compute_dtype(torch.device("cpu"))
    return torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)


class Run:
    """Weights on their way.

    Args:
        net: what is trained; all of its parameters that ask for a gradient.
        steps: how many there will be, over all slices.
        rate: the peak step of a row of a kernel; Adam's is a twentieth of it.
        seed: of the batches.
        memory: steps over which weights are averaged, at most.
        linear: whether Muon takes the matrices of linear layers too.
    """

    def __init__(
        self,
        net: nn.Module,
        steps: int,
        rate: float = 0.02,
        seed: int = 0,
        memory: int = 500,
        linear: bool = False,
    ) -> None:
        self.net = net.train()
        self.steps, self.rate, self.memory = steps, rate, memory
        self.optimiser = Muon(net, linear=linear)
        self.average = [p.detach().clone() for p in net.parameters()]
        self.rng = np.random.default_rng(seed)
        self.step, self.seconds, self.loss = 0, 0.0, math.nan

    def advance(self, loss: Loss) -> None:
        """One step."""
        value = loss(self.net, self.rng)
        if not math.isfinite(value.item()):
            raise TrainingError(f"the loss is not finite at step {self.step}: take a lower rate")
        value.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        behind = self.step / self.steps
        warm = min(1.0, (self.step + 1) / min(_WARM, 0.1 * self.steps + 1))
        self.optimiser.step(self.rate * warm * 0.5 * (1 + math.cos(math.pi * behind)))
        self.step += 1
        keep = min(1 - 1 / self.memory, 1 - 4 / (self.step + 4))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.net.parameters()), 1 - keep)
        before = value.item() if math.isnan(self.loss) else self.loss
        self.loss = before + (value.item() - before) / min(self.step, 200)

    def averaged(self) -> nn.Module:
        """A copy of the network with the averaged weights, in eval mode."""
        net = copy.deepcopy(self.net).eval().requires_grad_(False)
        with torch.no_grad():
            for p, mean in zip(net.parameters(), self.average, strict=True):
                p.copy_(mean)
        return net

    def go(
        self,
        loss: Loss,
        checkpoint: Path,
        minutes: float | None = None,
        score: Callable[[nn.Module], str] | None = None,
    ) -> bool:
        """Train until the last step, or until the minutes are over; whether it is the end.

        Progress is printed once a minute and the checkpoint written every two; `score` of the
        averaged network is printed every ten minutes and at the end.
        """
        begin = last = scored = saved = time.monotonic()
        from_step, cpu = self.step, time.process_time()
        while self.step < self.steps:
            with kept(torch.device("cpu")):
                self.advance(loss)
            now = time.monotonic()
            self.seconds += now - last
            over = minutes is not None and now - begin > 60 * minutes
            done = over or self.step == self.steps
            if done or now - begin > SAY_EVERY * (1 + (last - begin) // SAY_EVERY):
                taken = self.step - from_step
                left = (now - begin) / taken * (self.steps - self.step) / 60
                print(
                    f"step {self.step} of {self.steps}, {self.seconds / 60:.1f} min, loss"
                    f" {self.loss:.4f}, {(time.process_time() - cpu) / taken:.2f} CPU s a step,"
                    f" {left:.0f} min to go",
                    flush=True,
                )
            if done or now - saved > SAVE_EVERY:
                self.save(checkpoint)
                saved = now
            if score is not None and (done or now - scored > SCORE_EVERY):
                print(f"step {self.step}: {score(self.averaged())}", flush=True)
                scored = now
            last = now
            if over:
                break
        return self.step >= self.steps

    def save(self, path: Path) -> None:
        """Write a checkpoint of plain values and tensors, whole or not at all."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        if not path.is_file():
            raise FileProblem(f"there is nothing to continue: {path} does not exist")
        state = torch.load(path, weights_only=True)
        try:
            self.net.load_state_dict(state["net"])
        except RuntimeError as problem:
            raise ResumeError(f"{path} is of another network: {problem}") from None
        self.average = state["average"]
        self.optimiser.restore(state["optimiser"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
