"""What a flexible model knows of its own forwards, when a backward pass runs parts of them again."""

import copy
import pickle

import pytest
import torch
from hosts import VisionMamba, clip, randomised
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import flexvideo as fv


class Checkpointed(VisionMamba):
    """A host that checkpoints its own features."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.forward_features, x, use_reentrant=self.reentrant))


def gradients(model: VisionMamba, patches: tuple[int, ...]) -> list[Tensor]:
    """Of several forwards at several patches, in one backward pass."""
    x = clip((4, 48, 48)).requires_grad_()
    sum(model(x, patch=patch).square().sum() for patch in patches).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_part_run_again_has_the_patch_of_its_call(reentrant: bool) -> None:
    plain = randomised(VisionMamba())
    host = Checkpointed()
    host.load_state_dict(plain.state_dict())
    host.reentrant = reentrant
    patches = (4, 16, 8)
    expected = gradients(fv.make_flexible(plain, policy="flex-all"), patches)
    torch.testing.assert_close(gradients(fv.make_flexible(host, policy="flex-all"), patches), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_know_nothing_of_earlier_forwards(duplicate) -> None:
    model = fv.make_flexible(VisionMamba())
    model(clip((4, 48, 48)))
    assert len(model._flex._runs) > 0
    assert len(duplicate(model)._flex._runs) == 0
