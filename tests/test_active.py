"""What a flexible model knows of its own forwards, when a backward pass runs parts of them again."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread

import pytest
import torch
from hosts import VisionMamba, clip, randomised
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import flexvideo as fv
from flexvideo.errors import GeometryError


class Checkpointed(VisionMamba):
    """A host that checkpoints its own features."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.forward_features, x, use_reentrant=self.reentrant))


def gradients(model: nn.Module, patches: tuple[fv.active.Patch | None, ...]) -> list[Tensor]:
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


class Around(nn.Module):
    """A model that checkpoints the one inside, which takes the clip."""

    def __init__(self, inside: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.inside, self.reentrant = inside, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inside, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("policy", ["flex-all", "static-tokens"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_run_again_has_the_patch_that_was_handed_to_it(reentrant: bool, policy: str) -> None:
    plain = randomised(VisionMamba())
    around = fv.make_flexible(Around(copy.deepcopy(plain), reentrant=reentrant), policy=policy)
    patches = (4, 16, (8, 12), None)
    expected = gradients(fv.make_flexible(plain, policy=policy), patches)
    torch.testing.assert_close(gradients(around, patches), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_part_run_again_with_a_clip_of_its_own_has_the_patch_of_the_policy(reentrant: bool) -> None:
    class TwoScales(Checkpointed):
        """Another clip inside is not given the patch that the policy chose for the one outside."""

        def again(self, x: Tensor) -> Tensor:
            return checkpoint(self.forward_features, x, use_reentrant=reentrant)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(x) + self.again(x[..., ::2, ::2]))

    class Plainly(TwoScales):
        def again(self, x: Tensor) -> Tensor:
            return self.forward_features(x)

    host, plain = TwoScales(), Plainly()
    host.load_state_dict(plain.state_dict())
    expected = gradients(fv.make_flexible(plain), (None,))
    torch.testing.assert_close(gradients(fv.make_flexible(host), (None,)), expected)


@pytest.mark.parametrize("inner", [True, False])
def test_backward_passes_of_another_thread(inner: bool) -> None:
    """As on a GPU: the thread that runs parts again counts its nodes from zero, and for ever."""
    plain = randomised(VisionMamba())
    part = Checkpointed()
    part.load_state_dict(plain.state_dict())
    part.reentrant = True
    around = fv.make_flexible(
        Around(part if inner else copy.deepcopy(plain), reentrant=True), policy="flex-all"
    )
    fv.make_flexible(plain, policy="flex-all")
    with ThreadPoolExecutor(1) as thread:
        for patches in ((4, 16), (8, 4), (16, 8), (4, 8), (8, 16)) * 3:
            for model in (plain, around):
                model.zero_grad()
                x = clip((4, 48, 48)).requires_grad_()
                total = sum(model(x, patch=patch).square().sum() for patch in patches)
                thread.submit(total.backward).result()
            for a, b in zip(around.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad)
    assert around._flex._runs_again == []


def test_threads_that_cannot_be_told_apart_are_an_error() -> None:
    around = fv.make_flexible(Around(randomised(VisionMamba()), reentrant=True), policy="flex-all")
    outputs = []

    def work(patch: int) -> None:
        outputs.append(around(clip((4, 48, 48)).requires_grad_(), patch=patch))

    for patch in (4, 16):
        thread = Thread(target=work, args=(patch,))  # each counts its nodes from zero
        thread.start()
        thread.join()
    with pytest.raises(
        GeometryError, match=r"patches of .*\(4, 4\).*, could have been this one: pass `patch`"
    ):
        outputs[0].sum().backward()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_know_nothing_of_earlier_forwards(duplicate) -> None:
    model = fv.make_flexible(VisionMamba())
    model(clip((4, 48, 48)))
    assert len(model._flex._runs) > 0
    assert len(duplicate(model)._flex._runs) == 0


class Encoder(VisionMamba):
    """A host with a method that takes the clip and that no plan names."""

    def encode(self, x: Tensor) -> Tensor:
        return self.forward_features(x)

    def tokens(self, x: Tensor) -> Tensor:
        return self.patch_embed.proj(x)


@pytest.mark.parametrize("policy", ["static-patch", "static-tokens"])
def test_a_method_that_is_no_entry_point(policy: str) -> None:
    model = fv.make_flexible(randomised(Encoder()), policy=policy)
    assert torch.equal(model.encode(clip((4, 48, 48))), model.forward_features(clip((4, 48, 48))))
    assert model.tokens(clip((4, 32, 32))).shape == (2, 8, 4, 4, 4)
    for size in ((4, 48, 48), (4, 33, 32)):
        with pytest.raises(
            GeometryError, match=f"frames of {size[1]} x .* px outside of forward, forward_fea"
        ):
            model.tokens(clip(size))
    plan = fv.plan_for(Encoder())
    model = fv.make_flexible(Encoder(), plan=replace(plan, entries=(*plan.entries, "tokens")))
    assert model.tokens(clip((4, 48, 48))).shape == (2, 8, 4, 4, 4)
