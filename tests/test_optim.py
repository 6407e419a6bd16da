"""The learning rate is a function of the step, whatever the schedule."""

import math

import pytest

from tercet.configs import TrainConfig
from tercet.train.optim import learning_rate


def rates(steps: int, **settings: object) -> list[float]:
    config = TrainConfig(learning_rate=2.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "cyclic", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_every_rate_is_positive_and_at_most_the_highest(
    steps: int, schedule: str, warmup: float
) -> None:
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert all(0 < rate <= 2.0 for rate in found) and max(found) == pytest.approx(2.0)


def test_cyclic_is_linear_again_and_again() -> None:
    found = rates(30, schedule="cyclic", warmup=0.2, cycles=3)
    assert found == 3 * rates(10, schedule="linear", warmup=0.2)
    uneven = rates(8, schedule="cyclic", warmup=0.0, cycles=3)  # cycles of 3, 3 and 2 steps
    assert uneven == [
        rate for length in (3, 3, 2) for rate in rates(length, schedule="linear", warmup=0.0)
    ]
    assert rates(9, schedule="cyclic", cycles=1) == rates(9, schedule="linear")
    assert rates(2, schedule="cyclic", warmup=0.0, cycles=5) == [2.0, 2.0]


def test_cosine_is_half_a_wave() -> None:
    found = rates(10, schedule="cosine", warmup=0.2)
    wanted = [1.0, 2.0, *(1 + math.cos(math.pi * step / 8) for step in range(8))]
    assert found == pytest.approx(wanted)


def test_wsd_comes_down_at_the_end() -> None:
    found = rates(10, schedule="wsd", warmup=0.1, decay=0.4)
    assert found == pytest.approx([2.0] * 7 + [1.5, 1.0, 0.5])
