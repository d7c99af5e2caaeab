"""What a model carries beside its weights, and its way to the Hugging Face Hub and back."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class HubMixin:
    """Facts that travel with the weights; assign to them before saving.

    Attributes:
        labels: class names in the order of the head's rows; None when unknown.
        mean: of the colour channels of training frames in [0, 1]; read_clip takes it.
        std: of the colour channels of training frames.
        source: where `flexvideo.load` found the weights: a path, or repository, commit and file.
    """

    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    source: str | None = None
