"""AdamW groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from tercet.configs import Config, LossConfig, TrainConfig

LEAST_TEMPERATURE = 0.01
FACTOR = "rate_factor"  # a group's rate as a multiple of the encoder's


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with weight decay on matrices only.

    Biases and normalisation weights are not decayed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas
    )


def allocate(optimizer: torch.optim.Optimizer) -> None:
    """Make Adam's averages now, zero as its first step would, so that what is free stays free."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }


def add_temperature(
    optimizer: torch.optim.Optimizer, log_temperature: nn.Parameter, config: Config
) -> None:
    """A group of its own, without decay, whose rate follows the same schedule from another height.

    A scalar moves by about the rate in each step of Adam, so at an encoder's rate it would stay
    where it was.
    """
    factor = config.loss.temperature_learning_rate / config.train.learning_rate
    optimizer.add_param_group({"params": [log_temperature], "weight_decay": 0.0, FACTOR: factor})


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the encoder's rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def least_log_temperature(config: LossConfig) -> float:
    """The bound of a learnt temperature: 0.01 as in CLIP (arXiv:2103.00020), or a lower start."""
    return math.log(min(LEAST_TEMPERATURE, config.temperature))


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ... of `steps`: warm-up from 0, then the schedule.

    linear: down to 0 at the end. cosine: the same on half a wave (arXiv:1608.03983). wsd (warm-up,
    stable, decay; arXiv:2404.06395): constant, then linearly down to 0 over the last `decay`
    share. cyclic: `cycles` linear schedules of equal length, one after the other (LEAF,
    arXiv:2509.12539). constant: constant.

    >>> config = TrainConfig(learning_rate=1.0, warmup=0.2, schedule="linear")
    >>> [round(learning_rate(step, 10, config), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    if config.schedule == "cyclic":
        cycle = step * config.cycles // steps
        first, end = (-(-n * steps // config.cycles) for n in (cycle, cycle + 1))
        step, steps = step - first, end - first
    warm = round(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    falling = {"wsd": round(config.decay * steps), "constant": 0}.get(config.schedule, steps - warm)
    left = 1.0 if falling == 0 else min(1.0, (steps - step) / falling)
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return config.learning_rate * left
