"""The learning rate as a function of the step."""

import math


def learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, first: float = 0.0, last: float = 0.0
) -> float:
    """Rise linearly to the peak, then fall along half a cosine.

    Args:
        step: from 0 to steps - 1.
        steps: of the whole run.
        warmup: steps of the rise; step `warmup` is the first at the peak.
        peak: highest value.
        first: value at step 0 when there is a rise.
        last: where the cosine ends, which step `steps` would reach.

    Example:
        >>> [learning_rate(step, steps=4, warmup=2, peak=1.0) for step in range(4)]
        [0.0, 0.5, 1.0, 0.5]
    """
    if step < warmup:
        return first + (peak - first) * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return last + (peak - last) * (1 + math.cos(math.pi * done)) / 2
