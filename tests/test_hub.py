"""To the Hub and back, with its real client and a server on the loopback: the usual ways, and every fault."""

import argparse
import copy
import errno
import hashlib
import inspect
import json
import logging
import os
import re
import resource
import runpy
import signal
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import READER, STRANGER, WRITER, Fault, HubServer
from small import SIZES, clip
from small import build as build_two_layers

import flexvideo as fv
from flexvideo.errors import CheckpointError, CheckpointWarning, ConfigError, HubError

# The client of this version passes open files in a way that its own HTTP library calls outdated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ROOT = Path(__file__).parents[1]
REPO = "someone/stretchy"


def build(**arguments) -> fv.VideoMamba:
    return build_two_layers(depth=1, **arguments)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub that the real client takes for the Hub, with a cache of its own and short waits."""
    from huggingface_hub import constants, utils

    close_session = utils.close_session if hasattr(utils, "close_session") else utils.reset_sessions
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no_token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_ETAG_TIMEOUT": 1,
            "HF_HUB_DOWNLOAD_TIMEOUT": 1,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        pause = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.02)))
        monkeypatch.setattr(os, "fsync", lambda _: None)  # a busy disk takes longer than all else here
        close_session()
        yield server
        close_session()


def saved(model: fv.VideoMamba, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bare(model: fv.VideoMamba, path: Path) -> bytes:
    torch.save(model.state_dict(), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def original() -> fv.VideoMamba:
    model = fv.make_flexible(build(), policy=fv.FlexAll(frames=(4, 8), sizes=(32, 48)), rule="pi")
    model.labels = ("a", "b", "c", "d", "e")
    return model


@pytest.fixture(scope="module")
def original_files(original, tmp_path_factory) -> dict[str, bytes]:
    return saved(original, tmp_path_factory.mktemp("original") / "published")


@pytest.fixture
def flexible(original) -> fv.VideoMamba:
    return copy.deepcopy(original)


@pytest.fixture
def published(hub: HubServer, original_files) -> str:
    return hub.add(REPO, original_files)


def cached_files(tmp_path: Path) -> list[str]:
    """What a later load would find; parts that the client means to go on with do not count."""
    blobs = (tmp_path / "cache").rglob("blobs/*")
    return sorted(path.name for path in blobs if path.suffix != ".incomplete")


# What save_pretrained writes


def test_a_folder_has_the_hubs_three_files(flexible, tmp_path):
    files = saved(flexible, tmp_path / "folder")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads(files["config.json"])
    assert config["architecture"] == "VideoMamba"
    assert config["base"] == {"frames": 4, "height": 32, "width": 32, "patch": [8, 8], "tubelet": 1}
    assert {"policy": config["policy"], "rule": config["rule"]} == fv.flex_config(flexible)
    assert config["labels"] == ["a", "b", "c", "d", "e"]
    assert config["mean"] == [0.485, 0.456, 0.406]
    back = fv.VideoMamba.from_pretrained(tmp_path / "folder")
    assert saved(back, tmp_path / "again") | {"README.md": b""} == files | {"README.md": b""}


def test_the_card_tells_facts_and_three_lines_of_use(flexible, tmp_path):
    flexible.mean = (0.5, 0.5, 0.5)
    fv.make_flexible(flexible, policy=fv.FlexAll(frames=(4, 8), sizes=((32, 48), 64)))
    rows = [{"frames": 8, "size": 96, "top1": 0.81251}, {"frames": 16, "size": 96, "note": "a|b"}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    flexible.save_pretrained(tmp_path / "m", repo_id="me/m", results=tmp_path / "r.json", license="mit")
    card = (tmp_path / "m/README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: flexvideo\npipeline_tag: video-classification\n")
    for line in (
        "| base geometry | 4 x 32 x 32 |",
        "| policy | flex-all |",
        "| sizes the policy draws in training | 32 x 48, 64 |",
        "| resampling rule | pi, antialiased |",
        "| mean, std | 0.5, 0.5, 0.5; 0.229, 0.224, 0.225 |",
        'model = fv.load("me/m")',
        'fv.read_clip("video.mp4", frames=4, size=32, mean=model.mean, std=model.std)',
        "| frames | size | top1 | note |",
        "| 8 | 96 | 0.8125 |  |",
        "| 16 | 96 |  | a\\|b |",
        "arXiv:2510.16209",
    ):
        assert line in card
    assert json.loads((tmp_path / "m/results.json").read_text()) == rows


def test_a_card_without_facts_claims_none(tmp_path):
    build(num_classes=0).save_pretrained(tmp_path / "m")
    card = (tmp_path / "m/README.md").read_text()
    assert "license:" not in card
    assert "Not stated by the authors of these weights." in card
    assert "## Results" not in card
    assert "pipeline_tag: feature-extraction" in card


def test_a_card_that_somebody_wrote_stays(tmp_path):
    build().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n")
    build().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read: Expecting property name"), ("[1]", "must hold one JSON object or a list")],
)
def test_results_that_are_none(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        build().save_pretrained(tmp_path / "m", results=tmp_path / "r.json")


def test_results_that_are_no_plain_data_stop_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"^results cannot be read: Object of type Tensor is not JSON"):
        build().save_pretrained(tmp_path / "m", results={"top1": torch.tensor(0.5)})
    assert not (tmp_path / "m").exists()


def test_results_of_an_evaluation_are_shown_by_geometry(tmp_path):
    def cell(frames: int, size: int, value: float) -> dict:
        found = {"value": value, "low": value - 0.1, "high": value + 0.1}
        where = {"frames": frames, "size": size, "patch": None}
        return {"cell": where, "cost": {"tokens": 17}, "metrics": {"R@1": found}, "hits": "01", "chosen": {}}

    result = {"format": 1, "task": "retrieval", "name": "m", "queries": {"data": "ucf101", "split": "test"}}
    result["cells"] = [cell(8, 96, 0.5), cell(16, 224, 0.75)]
    (tmp_path / "r.json").write_text(json.dumps(result))
    build().save_pretrained(tmp_path / "m", results=tmp_path / "r.json")
    card = (tmp_path / "m/README.md").read_text()
    assert "| task | data | frames | size | R@1 |" in card
    assert "| retrieval | ucf101 | 16 | 224 | 0.75 (0.65 to 0.85) |" in card
    assert json.loads((tmp_path / "m/results.json").read_text()) == result


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file cannot be written: File exists"):
        build().save_pretrained(tmp_path / "file")


def test_results_in_the_folder_are_shown_while_they_are_of_these_weights(flexible, tmp_path):
    (tmp_path / "results.json").write_text('[{"frames": 8, "top1": 0.5}]')
    flexible.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| 8 | 0.5 |" in card
    flexible.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == card
    with torch.no_grad():
        flexible.head.bias += 1
    with pytest.warns(
        CheckpointWarning, match=r"results\.json was there before these weights and is left out"
    ):
        flexible.save_pretrained(tmp_path)
    assert "## Results" not in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == [{"frames": 8, "top1": 0.5}]


def test_the_hubs_own_methods_take_what_those_of_its_mixin_take():
    from huggingface_hub import PyTorchModelHubMixin

    left_out = {
        "save_pretrained": {"config", "model_card_kwargs", "push_to_hub_kwargs"},
        "from_pretrained": {"model_kwargs"},
        "push_to_hub": {
            "config",
            "model_card_kwargs",
            "allow_patterns",
            "ignore_patterns",
            "delete_patterns",
        },
    }
    for name, missing in left_out.items():
        theirs = inspect.signature(getattr(PyTorchModelHubMixin, name)).parameters
        ours = inspect.signature(getattr(fv.VideoMamba, name)).parameters
        assert theirs.keys() - ours.keys() == missing
        shared = theirs.keys() & ours.keys()
        assert all(theirs[key].kind == ours[key].kind for key in shared)


def test_a_subclass_is_loaded_as_itself_and_a_flexible_class_as_its_host(flexible, tmp_path):
    class Mine(fv.VideoMamba):
        pass

    fv.save(build(), tmp_path / "plain.safetensors")
    assert type(Mine.from_pretrained(tmp_path / "plain.safetensors")) is Mine
    assert type(type(flexible).from_pretrained(tmp_path / "plain.safetensors")) is fv.VideoMamba
    flexible.save_pretrained(tmp_path / "flexible")
    mine = Mine.from_pretrained(tmp_path / "flexible")
    assert isinstance(mine, Mine)
    assert fv.flex_config(mine) == fv.flex_config(flexible)


def test_convert_goes_both_ways(flexible, tmp_path):
    flexible.save_pretrained(tmp_path / "ours")
    assert fv.convert(tmp_path / "ours", tmp_path / "one.safetensors") == str(
        tmp_path / "ours/model.safetensors"
    )
    fv.convert(tmp_path / "one.safetensors", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    with pytest.warns(CheckpointWarning, match="bare state dict: it does not record"):
        fv.convert(tmp_path / "again", tmp_path / "official.pth")
    state = torch.load(tmp_path / "official.pth", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in flexible.state_dict().items())


def test_any_wrapped_model_keeps_its_policy_beside_its_own_weights(flexible, tmp_path):
    (tmp_path / "flex.json").write_text(json.dumps(fv.flex_config(flexible)))
    other = fv.make_flexible(build(), **json.loads((tmp_path / "flex.json").read_text()))
    assert all(torch.equal(other(clip(*size)), flexible(clip(*size))) for size in SIZES)


class Theirs(torch.nn.Module):
    """A model of somebody else's, who uploads it by the Hub's mixin."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.proj = torch.nn.Conv3d(3, width, (1, 8, 8), stride=(1, 8, 8))
        self.pos_embed = torch.nn.Parameter(torch.randn(1, 16, width))
        self.norm = torch.nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.proj(x).flatten(3).permute(0, 2, 3, 1) + self.pos_embed[:, None]
        return self.norm(tokens).mean(dim=(1, 2))


def test_another_model_goes_to_the_hub_by_its_own_way_and_its_policy_beside_it(hub, tmp_path):
    from huggingface_hub import HfApi, PyTorchModelHubMixin, hf_hub_download

    kind = type("Theirs", (Theirs, PyTorchModelHubMixin), {})
    model = kind(width=8)
    plan = fv.plan_for(model, size=32)
    plan = replace(plan, tables=(fv.Table("pos_embed", axes="space"),))
    fv.make_flexible(model, policy="static-patch", rule="pi", plan=plan)
    model.push_to_hub("writer/theirs", token=WRITER)
    HfApi(token=WRITER).upload_file(
        path_or_fileobj=json.dumps(fv.flex_config(model)).encode(),
        path_in_repo="flex.json",
        repo_id="writer/theirs",
    )
    other = kind.from_pretrained("writer/theirs")
    config = json.loads(Path(hf_hub_download("writer/theirs", "flex.json")).read_text())
    fv.make_flexible(other, **config, plan=plan)
    assert fv.flex_config(other) == fv.flex_config(model)
    assert all(torch.equal(other(clip(*size)), model(clip(*size))) for size in [(4, 32, 32), (3, 48, 48)])


# From the Hub


def test_load_gives_the_flexible_model_and_the_commit_it_came_from(hub, published, flexible, caplog):
    with caplog.at_level(logging.INFO, logger="flexvideo"):
        model = fv.load(REPO)
    assert model.source == f"{REPO}@{published}/model.safetensors"
    assert model.source in caplog.text
    assert model.labels == flexible.labels
    assert fv.flex_config(model) == fv.flex_config(flexible)
    assert all(torch.equal(model(clip(*size)), flexible(clip(*size))) for size in SIZES)


def test_a_second_load_downloads_nothing(hub, published):
    fv.load(REPO)
    hub.seen.clear()
    fv.load(REPO)
    assert hub.requests("/content/") == []
    assert {request.method for request in hub.requests("resolve")} == {"HEAD"}


def test_a_forced_download_fetches_again_what_is_there(hub, published):
    fv.load(REPO)
    hub.seen.clear()
    model = fv.VideoMamba.from_pretrained(REPO, force_download=True)
    assert model.source == f"{REPO}@{published}/model.safetensors"
    assert len(hub.requests("/content/")) == 1
    with pytest.raises(HubError, match=r"^force_download asks the Hub, and offline nothing may"):
        fv.VideoMamba.from_pretrained(REPO, force_download=True, local_files_only=True)


def test_the_config_counts_that_is_beside_the_weights(hub, flexible, tmp_path):
    files = {f"v2/{name}": content for name, content in saved(flexible, tmp_path / "v2").items()}
    files |= saved(fv.make_flexible(build(), policy="temporal"), tmp_path / "v1")
    hub.add("me/versions", files)
    name = "v2/model.safetensors"
    for model in (
        fv.load("me/versions", filename=name),
        fv.load("me/versions", filename=name, local_files_only=True),
    ):
        assert fv.flex_config(model)["policy"]["name"] == "flex-all"
    assert fv.describe("me/versions", filename=name).policy["name"] == "flex-all"
    assert fv.flex_config(fv.load("me/versions"))["policy"]["name"] == "temporal"


def test_names_of_other_files_are_the_owners_business(hub, flexible, tmp_path):
    hub.add(
        REPO, saved(flexible, tmp_path / "m") | {"seen at 12:30.png": b"", "notes: a.md": b"", "CON": b""}
    )
    assert fv.load(REPO).labels == flexible.labels


@pytest.mark.parametrize("wrapper", [None, "model", "module"])
def test_raw_weights_in_any_repository_with_a_policy_of_the_callers(hub, tmp_path, wrapper):
    model = build()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save(state if wrapper is None else {wrapper: state}, tmp_path / "w.pth")
    hub.add(
        "authors/raw", {"snake.pth": (tmp_path / "w.pth").read_bytes(), "config.json": b'{"model_type": "x"}'}
    )
    loaded = fv.load("authors/raw", policy="static-tokens", rule="paper")
    assert fv.flex_config(loaded)["rule"] == {"kernel": "paper", "antialias": False}
    assert torch.equal(loaded(clip()), model(clip()))
    assert type(fv.load("authors/raw", filename="snake.pth")) is fv.VideoMamba


def test_published_files_have_short_names(hub, tmp_path):
    content = bare(build(), tmp_path / "w.pth")
    sha = hub.add("OpenGVLab/VideoMamba", {"videomamba_t16_k400_f8_res224.pth": content, "x.pth": b"other"})
    model = fv.load("t16_k400_f8_res224")
    assert model.source == f"OpenGVLab/VideoMamba@{sha}/videomamba_t16_k400_f8_res224.pth"
    hub.add("OpenGVLab/VideoMamba", {"videomamba_m16_breakfast_mask_ft_f64_res224.pth": content})
    with pytest.warns(CheckpointWarning, match="holds a temporal table of 32 frames, not 64"):
        fv.load("m16_breakfast_mask_ft_f64_res224")


def test_a_published_file_that_is_right_is_loaded_without_a_word(hub, tmp_path):
    content = bare(build(), tmp_path / "w.pth")
    hub.add("OpenGVLab/VideoMamba", {"videomamba_m16_k400_mask_ft_f16_res224.pth": content, "x.pth": b""})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fv.load("videomamba_m16_k400_mask_ft_f16_res224")
    assert torch.equal(model(clip()), build()(clip()))


def test_revisions_are_pinned(hub, published, flexible, tmp_path):
    repo = hub.repos[REPO]
    repo.refs["v1"] = published
    with torch.no_grad():
        flexible.head.bias += 1
    newer = hub.add(REPO, saved(flexible, tmp_path / "newer"))
    assert newer != published
    for revision in ("v1", published):
        assert fv.load(REPO, revision=revision).source == f"{REPO}@{published}/model.safetensors"
    assert fv.load(REPO).source == f"{REPO}@{newer}/model.safetensors"


def test_a_repository_that_moves_while_it_is_read_gives_one_commit_and_a_warning(
    hub, published, flexible, tmp_path
):
    with torch.no_grad():
        flexible.head.bias += 1
    files = saved(flexible, tmp_path / "newer")
    answer = HubServer.fault_for

    def move(self, method, path):
        if method == "HEAD":
            self.fault_for = lambda *_: None
            self.add(REPO, files)
        return answer(self, method, path)

    hub.fault_for = move.__get__(hub)
    with pytest.warns(
        CheckpointWarning, match=f"is at commit {published}, but the client gave model.safetensors of"
    ):
        model = fv.load(REPO)
    assert model.source == f"{REPO}@{hub.repos[REPO].refs['main']}/model.safetensors"
    assert torch.equal(model.head.bias, flexible.head.bias)


def test_a_renamed_repository_is_followed(hub, published):
    hub.renamed["someone/before"] = REPO
    assert fv.load("someone/before").labels == ("a", "b", "c", "d", "e")


def test_a_private_repository_needs_a_token_that_no_one_else_sees(hub, flexible, tmp_path, caplog):
    hub.add("me/secret", saved(flexible, tmp_path / "m"), private=True)
    with caplog.at_level(logging.DEBUG):
        model = fv.load("me/secret", token=READER)
    assert all("authorization" not in request.headers for request in hub.requests("/content/"))
    assert all(request.headers["authorization"] == f"Bearer {READER}" for request in hub.requests("resolve"))
    assert READER not in caplog.text
    assert READER not in str(model.source)
    for token, asked in ((None, "not logged in"), (STRANGER, "no rights"), ("hf_wrong", "no such token")):
        with pytest.raises(HubError, match=r"me/secret(:| is not on) http") as error:
            fv.load("me/secret", token=token, cache_dir=tmp_path / asked)
        assert str(error.value).count("\n") == 0
        assert token is None or token not in str(error.value)


@pytest.mark.parametrize("token", ["", READER + "\n", f"hf_{chr(233)}", "hf a", "hf_\0"])
def test_a_token_that_cannot_be_sent_is_not_shown_either(hub, flexible, published, token, caplog):
    for call in (lambda: fv.load(REPO, token=token), lambda: flexible.push_to_hub(REPO, token=token)):
        with pytest.raises(HubError, match=r"^The token is empty, or has a space, a line break") as error:
            call()
        shown = "".join(traceback.format_exception(error.value)) + caplog.text
        assert not token or token.strip() not in shown
    assert hub.seen == []


def test_what_holds_a_token_does_not_print_it():
    from flexvideo.hubclient import Access
    from flexvideo.huberrors import explain

    assert READER not in repr(Access(READER))
    error = ValueError(f"Illegal header value b'Bearer {READER}'")
    assert READER not in explain(error, what="x", revision=None, endpoint="http://h")


def test_a_gated_repository_says_so(hub, flexible, tmp_path):
    hub.add("me/gated", saved(flexible, tmp_path / "m"), gated=True)
    with pytest.raises(
        HubError, match=r"me/gated/model\.safetensors is gated: accept its terms on http\S+/me/gated,"
    ):
        fv.load("me/gated", token=READER)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("someone/none", {}),
            HubError,
            r"^someone/none is no file or folder here: check the path.* too: someone/none is not on http://127"
            r"\.0\.0\.1:\d+, or is private: check its name",
        ),
        ((REPO, {"revision": "v9"}), HubError, r"^someone/stretchy has no revision 'v9'\.$"),
        (
            (REPO, {"filename": "w.pth"}),
            HubError,
            r"has no file w\.pth; it has .*config\.json",
        ),
        (
            (REPO, {"filename": "../w.pth"}),
            CheckpointError,
            r"filename='\.\./w\.pth' leads out of it and is refused",
        ),
        (("-bad-/..", {}), CheckpointError, r"is no file or folder here, no repository"),
        (("a--b/c", {}), HubError, "is no name of a repository"),
    ],
)
def test_what_is_not_there(hub, published, arguments, error, message):
    name, options = arguments
    with pytest.raises(error, match=message):
        fv.load(name, **options)


@pytest.mark.parametrize(
    "name", ["../../evil.pth", "/etc/evil.pth", "a/../../evil.pth", "..\\evil.pth", "C:evil.pth"]
)
def test_names_that_lead_out_of_a_repository_are_refused(hub, tmp_path, name):
    hub.add("me/evil", {name: bare(build(), tmp_path / "w.pth"), "README.md": b""})
    with pytest.raises(HubError, match=r"me/evil lists .*evil\.pth', which leads out of it: refused"):
        fv.load("me/evil")
    assert cached_files(tmp_path) == []


def test_a_pickle_with_code_from_the_hub_is_refused(hub, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_here"),)

    torch.save({"model": Malicious()}, tmp_path / "w.pth")
    hub.add("me/evil", {"w.pth": (tmp_path / "w.pth").read_bytes()})
    with pytest.raises(CheckpointError, match=r"w\.pth is refused: its pickle calls \w+\.mkdir"):
        fv.load("me/evil")
    assert not (tmp_path / "was_here").exists()


def test_a_damaged_file_from_the_hub_is_called_by_its_name_there(hub, tmp_path):
    sha = hub.add("me/broken", {"w.pth": b"hello, world", "config.json": b"{"})
    with pytest.raises(
        CheckpointError, match=rf"^me/broken@{sha}/w\.pth: {tmp_path}/.* is no weight file: it"
    ):
        fv.load("me/broken")
    sha = hub.add("me/broken", {"w.pth": bare(build(), tmp_path / "w.pth"), "config.json": b"{"})
    with pytest.raises(CheckpointError, match=rf"^me/broken@{sha}/config\.json is not JSON"):
        fv.load("me/broken")


@pytest.mark.parametrize("name", ["t16_k400_f8_res224", "videomamba_t16_k400_f8_res224"])
def test_short_names_of_files_in_the_official_repository(hub, tmp_path, name):
    content = bare(build(), tmp_path / "w.pth")
    hub.add("OpenGVLab/VideoMamba", {"videomamba_t16_k400_f8_res224.pth": content, "x.pth": b"other"})
    model = fv.load("OpenGVLab/VideoMamba", filename=name)
    assert model.source.endswith("/videomamba_t16_k400_f8_res224.pth")


def test_where_a_model_came_from_says_how_to_load_it_again(hub, published):
    with pytest.raises(CheckpointError) as error:
        fv.load(f"{REPO}@{published}/model.safetensors")
    expected = f"Did you mean '{REPO}' with filename='model.safetensors' and revision='{published}'?"
    assert str(error.value).endswith(expected)


def test_a_config_of_other_weights_on_the_hub_is_left_alone(hub, flexible, tmp_path):
    files = saved(flexible, tmp_path / "m") | {"epoch9.pth": bare(build(num_classes=7), tmp_path / "w.pth")}
    hub.add("me/both", files)
    for local_files_only in (False, True):
        model = fv.load("me/both", filename="epoch9.pth", local_files_only=local_files_only)
        assert (type(model), model.num_classes, model.labels) == (fv.VideoMamba, 7, None)
        fv.load("me/both")  # for the cache to have config.json


def test_policy_of_a_config_beside_raw_weights_on_the_hub(hub, tmp_path):
    config = b'{"library": "flexvideo", "policy": {"name": "temporal"}}'
    hub.add("authors/snake", {"snake.pth": bare(build(), tmp_path / "w.pth"), "config.json": config})
    for filename in (None, "snake.pth"):
        assert fv.flex_config(fv.load("authors/snake", filename=filename))["policy"]["name"] == "temporal"


@pytest.mark.parametrize("endpoint", ["localhost:8080", "huggingface.co", "ftp://h"])
def test_an_address_of_the_hub_that_is_none(hub, flexible, monkeypatch, endpoint):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    for call in (lambda: fv.load(REPO), lambda: flexible.push_to_hub(REPO, token=WRITER)):
        with pytest.raises(HubError, match=rf"^HF_ENDPOINT is '{endpoint}': it must begin with http:// or"):
            call()


def test_a_pointer_committed_in_place_of_the_weights(hub, monkeypatch):
    monkeypatch.setattr("hub_server.LFS_SUFFIXES", ())
    hub.add("me/pointer", {"w.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"})
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        fv.load("me/pointer")


# Information without the weights


def test_describe_fetches_a_header_and_no_weights(hub, flexible, published, tmp_path):
    found = fv.describe(REPO)
    assert found.source == f"{REPO}@{published}/model.safetensors"
    assert (found.classes, found.policy["name"], found.rule["kernel"]) == (5, "flex-all", "pi")
    assert found.parameters == sum(parameter.numel() for parameter in flexible.parameters())
    ranges = [request.headers.get("range") for request in hub.requests("/content/")]
    assert ranges == ["bytes=0-100000"]
    assert [path.name for path in (tmp_path / "cache").glob("*/snapshots/*/*")] == ["config.json"]


def test_describe_of_a_pickle_and_of_what_is_cached(hub, tmp_path, monkeypatch):
    hub.add("me/raw", {"w.pth": bare(build(), tmp_path / "w.pth")})
    assert fv.describe("me/raw").base == fv.Base(4, 32, 32, (8, 8))
    hub.seen.clear()
    assert fv.describe("me/raw", local_files_only=True).classes == 5
    assert hub.seen == []


PATCH = {"dtype": "F32", "shape": [32, 3, 1, 8, 8], "data_offsets": [0, 24576]}


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        (b"{nope", HubError, r"me/bad/model\.safetensors is no safetensors file, or a damaged one\.$"),
        (
            {"a": PATCH | {"shape": [-1, 3]}},
            CheckpointError,
            "has a damaged header: Trying to create tensor with",
        ),
        ({"a": PATCH | {"shape": [2**62, 2**62]}}, CheckpointError, "has a damaged header: Storage size"),
        ({"patch_embed.proj.weight": PATCH}, CheckpointError, "is no VideoMamba: pos_embed is missing"),
        ({"a": PATCH, "__metadata__": [1]}, CheckpointError, "has a damaged header|is no VideoMamba"),
        (
            {"patch_embed.proj.weight": PATCH, "__metadata__": {"flexvideo": "{"}},
            CheckpointError,
            r"the header of me/bad@\w+/model\.safetensors is not JSON",
        ),
    ],
)
def test_describe_of_a_header_that_is_none(hub, header, error, message):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    hub.add("me/bad", {"model.safetensors": struct.pack("<Q", len(text)) + text})
    with pytest.raises(error, match=message):
        fv.describe("me/bad")


# Offline


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE"])
def test_offline_takes_the_cache_and_asks_nobody(hub, published, flexible, monkeypatch, how):
    from huggingface_hub import constants

    fv.load(REPO)
    hub.seen.clear()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    only = how == "argument"
    why = "local_files_only=True" if only else "HF_HUB_OFFLINE is set"
    model = fv.load(REPO, local_files_only=only)
    assert model.source == f"{REPO}@{published}/model.safetensors"
    assert fv.load(REPO, revision=published, local_files_only=only).source == model.source
    assert torch.equal(model(clip()), flexible(clip()))
    for name, options in (("someone/none", {}), (REPO, {"revision": "v9"})):
        with pytest.raises(
            HubError,
            match=rf"^{name} is no file or folder here.*is not in the cache.*cache was to be asked \({why}\)",
        ):
            fv.load(name, local_files_only=only, **options)
    with pytest.raises(HubError, match=rf"^{REPO}@.* has no file w\.pth in the cache, .* \({why}\)"):
        fv.load(REPO, filename="w.pth", local_files_only=only)
    assert hub.seen == []


def test_a_hub_out_of_reach_is_replaced_by_the_cache_aloud(hub, published, tmp_path):
    fv.load(REPO)
    hub.stop()
    with pytest.warns(
        CheckpointWarning, match=rf"did not arrive from .* Taking {REPO}@{published}/.* from the cache"
    ):
        assert fv.load(REPO).source == f"{REPO}@{published}/model.safetensors"
    with pytest.raises(
        HubError,
        match=r"^someone/other is no file or folder here: check the path, if it was meant as one\. As a "
        r"repository it was looked for too: someone/other did not arrive from http://127\S*: ConnectError: ",
    ):
        fv.load("someone/other")


# Faults: nothing half-written is ever loaded


def test_a_connection_cut_in_mid_file_is_resumed_where_it_broke(hub, published, flexible, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.faults.append(Fault("/content/", "cut", times=2, after=5000))
    model = fv.load(REPO)
    ranges = [request.headers.get("range") for request in hub.requests("/content/")]
    assert ranges == [None, "bytes=5000-", "bytes=10000-"]
    assert torch.equal(model(clip()), flexible(clip()))


def test_a_server_without_ranges_is_asked_from_the_start(hub, published, flexible):
    hub.ranges = False
    hub.faults.append(Fault("/content/", "cut", times=1, after=5000))
    assert torch.equal(fv.load(REPO)(clip()), flexible(clip()))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/content/", "cut", after=0),
        Fault("/content/", "status", status=503),
        Fault("/content/", "status", status=500),
        Fault("/content/", "hang"),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status}",
)
def test_a_download_that_never_succeeds_is_one_sentence_and_leaves_nothing(
    hub, published, tmp_path, monkeypatch, fault
):
    hub.faults.append(fault)
    message = r"^someone/stretchy/model\.safetensors(:| did not arrive from) http"
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
        with pytest.raises(HubError, match=message) as error:
            fv.load(REPO)
    assert str(error.value).count("\n") == 0
    assert cached_files(tmp_path) == []
    hub.faults.clear()
    assert fv.load(REPO).labels is not None


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/api/models", "GET", 429),
        ("/api/models", "GET", 503),
        ("/resolve/", "HEAD", 429),
        ("/resolve/", "HEAD", 503),
        ("/content/", "GET", 429),
        ("/content/", "GET", 503),
        ("/content/", "GET", 500),
        ("/content/", "GET", 502),
        ("/content/", "GET", 504),
    ],
)
def test_passing_trouble_passes(hub, published, flexible, path, method, status):
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    hub.faults.append(Fault(path, "status", method=method, times=2, status=status, headers=headers))
    assert torch.equal(fv.load(REPO)(clip()), flexible(clip()))


def test_too_many_requests_for_good(hub, published):
    hub.faults.append(Fault("/api/models", "status", status=429))
    with pytest.raises(
        HubError, match=r"says that there were too many requests: try again later \(status 429\)\.$"
    ):
        fv.load(REPO)
    assert len(hub.requests("/api/models")) == 3


def test_a_slow_server_is_waited_for(hub, published, flexible):
    hub.faults.append(Fault("/content/", "slow"))
    assert torch.equal(fv.load(REPO)(clip()), flexible(clip()))


def test_content_with_the_wrong_checksum_is_refused_and_removed(hub, published, flexible, tmp_path):
    hub.faults.append(Fault("/content/", "corrupt", times=1))
    with pytest.raises(
        HubError, match=r"model\.safetensors is damaged: its sha256 is \w{64}, the Hub says \w{64}\. The"
    ):
        fv.load(REPO)
    assert all(len(name) == 40 for name in cached_files(tmp_path)), "no large file may be left"
    assert torch.equal(fv.load(REPO)(clip()), flexible(clip()))


def test_a_checksum_that_the_listing_contradicts(hub, published):
    hub.claims["model.safetensors"] = "0" * 64
    with pytest.raises(HubError, match=f"the Hub says {'0' * 64}"):
        fv.load(REPO)


@pytest.mark.parametrize("offline", [True, False])
def test_a_cache_that_has_rotted_is_noticed(hub, published, tmp_path, offline):
    fv.load(REPO)
    blob = max((tmp_path / "cache").rglob("blobs/*"), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(HubError, match=f"is damaged: its sha256 is .* the Hub says {blob.name}"):
        fv.load(REPO, local_files_only=offline)
    assert not blob.exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(hub, published, tmp_path):
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, room[1]))
    try:
        with pytest.raises(
            HubError, match=r"^someone/stretchy/model\.safetensors cannot be stored: File too large\.$"
        ):
            fv.load(REPO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
        signal.signal(signal.SIGXFSZ, before)
    assert cached_files(tmp_path) == []
    assert len(hub.requests("/content/")) == 1, "a full disk is no reason to ask again"


def test_a_cache_that_cannot_be(hub, published, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        HubError,
        match=r"^someone/stretchy/model\.safetensors cannot be stored as /.*/file/.*: Not a directory\.$",
    ):
        fv.load(REPO, cache_dir=tmp_path / "file")
    assert len(hub.requests("/content/")) == 0


def test_a_proxy_that_answers_with_a_page_of_its_own(hub, published):
    hub.faults.append(Fault("/api/models", "status", status=200))
    with pytest.raises(HubError, match=r"^someone/stretchy did not arrive from http.*JSONDecodeError"):
        fv.load(REPO)


@pytest.mark.parametrize(
    ("error", "passes", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            False,
            "cannot be stored: No space left on device.",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), False, "cannot be stored: Permission denied."),
        (OSError("Check failed.\nMore"), True, "did not arrive from http://h: OSError: Check failed."),
        (
            ConnectionError("/f?Sign=abc broke"),
            True,
            "did not arrive from http://h: ConnectionError: /f broke.",
        ),
        (KeyError("id"), False, "did not arrive from http://h: KeyError: 'id'."),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/proc/x"),
            False,
            "cannot be stored as /proc/x: No such file.",
        ),
        (TimeoutError(), True, "did not arrive from http://h: TimeoutError: no reason given."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_in_words(error, passes, sentence):
    from flexvideo.huberrors import explain, is_passing

    assert is_passing(error) is passes
    assert explain(error, what="x", revision=None, endpoint="http://h") == f"x {sentence}"


# To the Hub


def test_push_makes_the_repository_and_load_gives_the_model_back(hub, flexible):
    address = flexible.push_to_hub("writer/mine", token=WRITER, private=True, license="apache-2.0")
    repo = hub.repos["writer/mine"]
    assert address == f"{hub.url}/writer/mine/commit/{repo.refs['main']}"
    assert repo.private
    assert len(repo.commits) == 2, "one commit beside the one that makes the repository"
    files = repo.commits[repo.refs["main"]]
    assert sorted(files) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert b'fv.load("writer/mine")' in files["README.md"]
    model = fv.load("writer/mine", token=READER)
    assert all(torch.equal(model(clip(*size)), flexible(clip(*size))) for size in SIZES)


def test_pushing_the_same_again_changes_nothing(hub, flexible):
    first = flexible.push_to_hub("writer/mine", token=WRITER)
    assert flexible.push_to_hub("writer/mine", token=WRITER) == first


def card_of(hub: HubServer, repo_id: str) -> str:
    repo = hub.repos[repo_id]
    return repo.commits[repo.refs["main"]]["README.md"].decode()


def test_a_licence_is_kept_on_every_way(hub, flexible, tmp_path):
    flexible.push_to_hub("writer/mine", token=WRITER, license="apache-2.0")
    flexible.push_to_hub("writer/mine", token=WRITER)
    assert card_of(hub, "writer/mine").startswith("---\nlicense: apache-2.0\n")
    model = fv.load("writer/mine")
    assert model.license == "apache-2.0"
    model.push_to_hub("writer/other", token=WRITER)
    assert "license: apache-2.0\n" in card_of(hub, "writer/other")
    fv.convert("writer/other", tmp_path / "m.safetensors")
    fv.convert(tmp_path / "m.safetensors", tmp_path / "m")
    assert "license: apache-2.0\n" in (tmp_path / "m/README.md").read_text()
    build().save_pretrained(tmp_path / "m")
    assert fv.load(tmp_path / "m").license == "apache-2.0"
    model.save_pretrained(tmp_path / "m", license="mit")
    assert fv.load(tmp_path / "m").license == "mit"
    expected = (
        rf"^README\.md of {tmp_path / 'm'} says license mit, the model carries apache-2\.0, which is written"
    )
    with pytest.warns(CheckpointWarning, match=expected):
        model.save_pretrained(tmp_path / "m")


def test_a_licence_for_a_card_that_somebody_wrote_is_not_dropped_in_silence(hub, flexible, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    hub.add("writer/mine", {"README.md": b"# Mine\n"})
    expected = r"^README\.md of {} stays as somebody wrote it: write `license: mit` there yourself\.$"
    with pytest.warns(CheckpointWarning, match=expected.format(tmp_path)):
        flexible.save_pretrained(tmp_path, license="mit")
    with pytest.warns(CheckpointWarning, match=expected.format("writer/mine")):
        flexible.push_to_hub("writer/mine", token=WRITER, license="mit")
    assert fv.load(tmp_path).license == fv.load("writer/mine").license == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    flexible.save_pretrained(tmp_path, license="mit")


@pytest.mark.unchecked
@pytest.mark.parametrize("license", ["MIT License", "", "Apache-2.0", "mit\ntags: [x]", 3, ["mit"]])
def test_a_licence_that_is_no_identifier(hub, flexible, tmp_path, license):
    for call in (
        lambda: flexible.save_pretrained(tmp_path / "m", license=license),
        lambda: flexible.push_to_hub("writer/mine", token=WRITER, license=license),
    ):
        with pytest.raises(
            ConfigError, match=r"^license must be an identifier as the Hub spells it, such as 'ap"
        ):
            call()
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("private", [True, False])
def test_nothing_goes_to_a_repository_that_is_public_against_the_callers_word(hub, flexible, private):
    before = hub.add("writer/mine", {"README.md": b"# Mine\n"}, private=not private)
    kind = "public" if private else "private"
    message = f"^writer/mine is there already and is {kind}, against private={private}: nothing was uploaded"
    with pytest.raises(HubError, match=message):
        flexible.push_to_hub("writer/mine", token=WRITER, private=private)
    assert hub.repos["writer/mine"].refs == {"main": before}
    assert hub.requests("/preupload/") == []


@pytest.mark.unchecked
@pytest.mark.parametrize("name", [None, "", 3])
def test_push_to_no_name(hub, flexible, name):
    with pytest.raises(HubError, match=r"^repo_id must be the name of a repository \(owner/name\), got"):
        flexible.push_to_hub(name, token=WRITER)


def test_a_config_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "config.json").write_text('{"lr": 1}')
    with pytest.raises(
        CheckpointError, match=r"config\.json is of something else than flexvideo and would be lost"
    ):
        build().save_pretrained(tmp_path)
    build().save_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"is there already: give another target, or overwrite=True"):
        fv.convert(tmp_path / "m", tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"lr": 1}'
    assert not (tmp_path / "model.safetensors").exists()
    fv.convert(tmp_path / "m", tmp_path, overwrite=True)
    assert torch.equal(fv.load(tmp_path)(clip()), build()(clip()))
    for name in ("m.pth", "m.safetensors"):
        (tmp_path / name).write_bytes(b"old")
        with pytest.raises(ConfigError, match=rf"{name} is there already"):
            fv.convert(tmp_path / "m", tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"old"


def test_a_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"out\.safetensors has the name of a file, and this writes a folder"
    ):
        build().save_pretrained(tmp_path / "out.safetensors")
    with pytest.raises(
        CheckpointError, match=r"qdir ends in none of \.safetensors, .*save_pretrained a folder\.$"
    ):
        fv.save(build(), tmp_path / "qdir")
    with pytest.raises(CheckpointError, match="on meta without all of its values here"):
        build().to("meta").save_pretrained(tmp_path / "empty")
    assert list(tmp_path.iterdir()) == []


def test_push_leaves_a_card_that_somebody_wrote(hub, flexible):
    hub.add("writer/mine", {"README.md": b"# Mine\n"})
    flexible.push_to_hub("writer/mine", token=WRITER)
    files = hub.repos["writer/mine"].commits[hub.repos["writer/mine"].refs["main"]]
    assert files["README.md"] == b"# Mine\n"
    assert "model.safetensors" in files


def test_push_to_a_branch_and_as_a_pull_request(hub, flexible):
    flexible.push_to_hub("writer/mine", token=WRITER, branch="wide")
    repo = hub.repos["writer/mine"]
    assert "model.safetensors" in repo.commits[repo.refs["wide"]]
    assert "model.safetensors" not in repo.commits[repo.refs["main"]]
    assert (
        fv.load("writer/mine", revision="wide").source == f"writer/mine@{repo.refs['wide']}/model.safetensors"
    )
    address = flexible.push_to_hub("writer/mine", token=WRITER, create_pr=True)
    assert address == f"{hub.url}/writer/mine/discussions/1"
    assert "model.safetensors" not in repo.commits[repo.refs["main"]]
    proposed = fv.load("writer/mine", revision="refs/pr/1")
    assert proposed.source == f"writer/mine@{repo.refs['refs/pr/1']}/model.safetensors"


def test_saving_can_push_too_with_the_stored_token(hub, flexible, tmp_path):
    (tmp_path / "no_token").write_text(WRITER)
    assert flexible.save_pretrained(tmp_path / "mine") is None
    address = flexible.save_pretrained(tmp_path / "mine", push_to_hub=True, results={"top1": 0.5})
    repo = hub.repos["writer/mine"]
    assert address == f"{hub.url}/writer/mine/commit/{repo.refs['main']}"
    assert repo.commits[repo.refs["main"]]["results.json"] == (tmp_path / "mine/results.json").read_bytes()
    flexible.save_pretrained(tmp_path / "mine", repo_id="writer/other", push_to_hub=True)
    other = hub.repos["writer/other"]
    assert b"| 0.5 |" in other.commits[other.refs["main"]]["README.md"]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"^writer/mine \(upload\) needs a token, and there is none: log in with `hf auth login`, set"),
        (True, r"^token=True needs a token, and there is none: log in with `hf auth login`, set HF_TOKEN or"),
        (READER, r"denies access: the token lacks the right \(status 403\)\.$"),
    ],
)
def test_push_without_the_right_to(hub, flexible, token, message):
    with pytest.raises(HubError, match=message):
        flexible.push_to_hub("writer/mine", token=token)
    assert hub.repos == {}


def test_push_while_offline(hub, flexible, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"^writer/mine \(upload\) needs the Hub, and HF_HUB_OFFLINE"):
        flexible.push_to_hub("writer/mine", token=WRITER)


@pytest.mark.parametrize("path", ["/repos/create", "/preupload/", "/objects/batch", "/commit/"])
def test_trouble_while_pushing_passes_and_leaves_one_commit(hub, flexible, path):
    hub.faults.append(Fault(path, "status", method="POST", times=2, status=503))
    flexible.push_to_hub("writer/mine", token=WRITER)
    repo = hub.repos["writer/mine"]
    assert len(repo.commits) == 2
    assert torch.equal(fv.load("writer/mine")(clip()), flexible(clip()))


def test_an_upload_that_breaks_leaves_the_repository_as_it_was(hub, published, flexible):
    hub.repos["writer/mine"] = hub.repos[REPO]
    hub.faults.append(Fault("/upload/", "status", method="PUT", status=400))
    with torch.no_grad():
        flexible.head.bias += 1
    with pytest.raises(HubError, match=r"^writer/mine \(upload\): http.* refuses \(status 400\)\.$"):
        flexible.push_to_hub("writer/mine", token=WRITER)
    assert hub.repos["writer/mine"].refs["main"] == published


def test_the_readme_does_what_it_says(hub, flexible, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_token").write_text(WRITER)
    weights = bare(build(), tmp_path / "w.pth")
    hub.add("me/my-flexible-videomamba", saved(flexible, tmp_path / "m"), private=True)
    hub.add("OpenGVLab/VideoMamba", {"videomamba_m16_k400_mask_ft_f16_res224.pth": weights, "x.pth": b""})
    hub.add("owner/name", {"weights.pth": weights, "optimizer.pt": b""})
    section = (ROOT / "README.md").read_text().partition("## Weights on the Hub")[2].partition("\n## ")[0]
    blocks = re.findall(r"```py\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 3
    scope = {"fv": fv, "json": json, "Path": Path, "other_model": flexible, "copy": build()}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert fv.flex_config(scope["copy"]) == fv.flex_config(flexible)
    assert len(hub.repos["me/my-flexible-videomamba"].commits) == 2


def test_the_example_goes_to_the_hub_and_back(hub, tmp_path, capsys):
    (tmp_path / "no_token").write_text(WRITER)
    runpy.run_path(str(ROOT / "examples/04_save_and_share.py"))["main"](str(tmp_path / "m"), "writer/m", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"pushed: {hub.url}/writer/m/commit/")
    assert re.match(r"writer/m@\w{40}/model\.safetensors: flex-all, .* same bits: True", lines[2])


# Another process, by one line

READ = """
import sys, torch
import flexvideo as fv
assert "huggingface_hub" not in sys.modules
torch.set_num_threads(1)
model = fv.load("writer/mine")
sizes = [(4, 32, 32), (3, 48, 48), (6, 40, 24)]
clips = [torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0])) for size in sizes]
torch.save([model(clip) for clip in clips], sys.argv[1])
"""


def test_trained_pushed_and_loaded_by_two_others_at_once_gives_the_same_bits(hub, flexible, tmp_path):
    flexible.train()
    optimizer = torch.optim.AdamW(flexible.parameters(), lr=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        flexible(clip(*SIZES[step])).square().mean().backward()
        optimizer.step()
    flexible.eval().push_to_hub("writer/mine", token=WRITER)
    hub.faults.append(Fault("/content/", "slow"))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
    }
    outputs = [tmp_path / "1.pt", tmp_path / "2.pt"]
    readers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", READ, path], env=environment, cwd=tmp_path)
        for path in outputs
    ]
    assert [reader.wait(timeout=100) for reader in readers] == [0, 0]
    for path in outputs:
        for logits, size in zip(torch.load(path), SIZES, strict=True):
            assert torch.equal(logits, flexible(clip(*size)))
    assert len(hub.requests("/content/")) == 1, "two that load at once download once"


def test_commands_print_the_commit(hub, published, tmp_path, capsys):
    from flexvideo.cli import main
    from flexvideo.cli.shared import load_model

    name = f"{REPO}@{published}/model.safetensors"
    assert main(["info", REPO]) == 0
    assert capsys.readouterr().out.startswith(f"{name}\n  model      VideoMamba custom")
    assert main(["convert", REPO, str(tmp_path / "m.safetensors")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'm.safetensors'} from {name}\n"
    load_model(argparse.Namespace(checkpoint=REPO, filename=None, revision=None, rule=None))
    assert capsys.readouterr().err == f"checkpoint: {name}\n"
    assert main(["info", "someone/none"]) == 2
    assert capsys.readouterr().err.startswith("flexvideo info: someone/none is no file or folder here: ")


def test_no_warning_on_an_ordinary_load(hub, published):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fv.load(REPO)
    assert hashlib.sha256(hub.repos[REPO].commits[published]["model.safetensors"]).hexdigest() in hub.lfs
