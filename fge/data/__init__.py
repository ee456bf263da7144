"""Images in memory, and batches of them."""

from fge.data.augment import POLICIES, Mixup, Policy, check_policy
from fge.data.batches import (
    EVAL_BATCH_SIZES,
    Crops,
    EvalBatches,
    Normaliser,
    TrainBatches,
    ViewBatches,
    default_padding,
)
from fge.data.choice import balanced_order
from fge.data.images import Skipped, list_images, read_images
from fge.data.ood import load_ood
from fge.data.sources import DOWNLOADED, FEWER, download_note
from fge.data.splits import (
    Dataset,
    OODImages,
    Split,
    load_dataset,
    load_raw,
)

__all__ = [
    "DOWNLOADED",
    "EVAL_BATCH_SIZES",
    "FEWER",
    "POLICIES",
    "Crops",
    "Dataset",
    "EvalBatches",
    "Mixup",
    "Normaliser",
    "OODImages",
    "Policy",
    "Skipped",
    "Split",
    "TrainBatches",
    "ViewBatches",
    "balanced_order",
    "check_policy",
    "default_padding",
    "download_note",
    "list_images",
    "load_dataset",
    "load_ood",
    "load_raw",
    "read_images",
]
