"""What a model carries beside its weights, and its way to the Hugging Face Hub and back."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from flexvideo.imagenet import IMAGENET_MEAN, IMAGENET_STD

Model = TypeVar("Model", bound="HubMixin")


class HubMixin:
    """Facts that travel with the weights, and the Hub's own three methods.

    The Hub's client is imported when a method first needs it, never before.

    Attributes:
        labels: class names in the order of the head's rows; None when unknown. Assign before saving.
        mean: of the colour channels of training frames in [0, 1]; what `read_clip` takes.
        std: of the colour channels of training frames.
        license: identifier of the weights' licence as the Hub spells it; None when unknown.
        source: where `flexvideo.load` found the weights: a path, or repository, commit and file.
    """

    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    license: str | None = None
    source: str | None = None

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        filename: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        policy: Any = None,
        rule: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Model:
        """Load a model from the Hub, a folder or a file: `flexvideo.load` under the Hub's own name.

        Args:
            pretrained_model_name_or_path: repository, folder or file.
            filename: as in `flexvideo.load`.
            revision: as in `flexvideo.load`.
            token: as in `flexvideo.load`.
            cache_dir: as in `flexvideo.load`.
            local_files_only: as in `flexvideo.load`.
            force_download: fetch again what the cache has already.
            policy: as in `flexvideo.load`.
            rule: as in `flexvideo.load`.
            dtype: as in `flexvideo.load`.
            device: as in `flexvideo.load`.
        """
        from flexvideo.checkpoints import load_as

        # The class of a flexible model is made for it alone, and nothing else is loaded as one.
        kind: Any = getattr(cls, "_flex_host", cls)
        return load_as(
            kind,
            pretrained_model_name_or_path,
            filename=filename,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            policy=policy,
            rule=rule,
            dtype=dtype,
            device=device,
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        results: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        license: str | None = None,
    ) -> str | None:
        """Write config.json, model.safetensors with the official names, and a model card to a folder.

        Args:
            save_directory: the folder; made when it is not there.
            repo_id: name of the repository that the card is for; the folder's by default.
            push_to_hub: upload the model too, with the stored token; `push_to_hub` takes another.
            results: measurements for the card, as data or as a JSON file; kept as results.json, which is
                taken for them where it is there and the weights are not new.
            license: identifier of the weights' licence as the Hub spells it, such as "apache-2.0"; the one
                that the model was loaded with, or that the card in the folder names, by default.

        Returns:
            Address of the commit, of what was uploaded.

        Raises:
            CheckpointError: the folder cannot be written, holds a config.json of something else, or `results`
                cannot be read.
            ConfigError: a `license` that is no identifier.
            HubError: as `push_to_hub` raises it.
        """
        from flexvideo.folder import save_folder
        from flexvideo.models import VideoMamba

        assert isinstance(self, VideoMamba)
        shown = save_folder(self, save_directory, name=repo_id, results=results, license=license)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or Path(save_directory).name, results=shown, license=license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model with flexvideo",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        results: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        license: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes, in one commit; a card that others have written stays.

        Args:
            repo_id: "owner/name"; made when it is not there.
            commit_message: of the commit.
            private: whether a new repository is private; the owner's default when None. One that is there
                must be so already.
            token: of the Hub; the stored one by default.
            branch: to commit to, made when it is not there; "main" by default.
            create_pr: open a pull request instead of committing to the branch.
            results: as in `save_pretrained`.
            license: as in `save_pretrained`.

        Returns:
            Address of the commit.

        Raises:
            HubError: the Hub refuses or cannot be reached, or `private` is not what the repository is.
            ConfigError: as in `save_pretrained`.
        """
        from flexvideo.models import VideoMamba
        from flexvideo.upload import push

        assert isinstance(self, VideoMamba)
        return push(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            results=results,
            license=license,
        )
