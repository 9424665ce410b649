# SPDX-License-Identifier: Apache-2.0
"""Learning rates by step."""

import math
from collections.abc import Callable

SCHEDULES = ('constant', 'step', 'cosine')


def make(
    name: str,
    learning_rate: float,
    total: int,
    *,
    decay_steps: int = 0,
    decay_rate: float = 0.1,
    warmup_steps: int = 0,
) -> Callable[[int], float]:
    """Returns a function from the step, counted from 0, to its learning rate.

    Args:
      name: 'constant'; 'step': times `decay_rate` every `decay_steps` (0.5 every 150,000 for Sports-1M,
        0.1 every 4 epochs for UCF101 in the paper); 'cosine': falls to 0 at `total`.
      learning_rate: the first rate.
      total: steps of the run.
      decay_steps, decay_rate: of 'step'.
      warmup_steps: the rate rises linearly over these first steps.

    Raises:
      ValueError: the name is none of SCHEDULES, or 'step' has no decay_steps.
    """
    if name not in SCHEDULES:
        raise ValueError(f'schedule {name!r}: expected one of {", ".join(SCHEDULES)}')
    if name == 'step' and decay_steps < 1:
        raise ValueError('schedule step needs decay_steps ≥ 1')

    def rate(step: int) -> float:
        value = learning_rate
        if name == 'step':
            value *= decay_rate ** (step // decay_steps)
        elif name == 'cosine':
            value *= (1 + math.cos(math.pi * min(step / total, 1))) / 2
        if step < warmup_steps:
            value *= (step + 1) / warmup_steps
        return value

    return rate
