"""The learning rate as a function of the step: linear warm-up, then cosine, linear, WSD or constant.

WSD (warm-up, stable, decay): Hu et al. 2024, MiniCPM, arXiv 2404.06395; the decay is linear.
"""

import math

from model.train_config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step number `step`; the first is 0.

    It reaches `lr` at `warmup_steps` and ends at lr * min_lr_ratio (a constant schedule stays).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, config.steps - 1 - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    low = config.min_lr_ratio
    if config.schedule == "cosine":
        factor = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "linear":
        factor = 1 - (1 - low) * done
    elif config.schedule == "wsd":
        left = (1 - done) / config.decay_fraction if config.decay_fraction else 1.0
        factor = low + (1 - low) * min(1.0, left)
    else:
        factor = 1.0
    return config.lr * factor
