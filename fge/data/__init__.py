"""Images, in memory or read when they are needed, and batches of them."""

from fge.data.augment import POLICIES, Mixup, Policy, check_policy
from fge.data.batches import (
    EVAL_BATCH_SIZES,
    EvalBatches,
    Normaliser,
    TrainBatches,
    ViewBatches,
    default_padding,
)
from fge.data.choice import balanced_order
from fge.data.columns import MISSING, Table, read_table
from fge.data.crops import Crops, crops_of
from fge.data.encoding import TRUTH, Column, Encoder, TableFacts
from fge.data.folders import find_unreadable
from fge.data.images import Skipped, list_images, read_images
from fge.data.ood import load_ood
from fge.data.pictures import FEWER, ArrayPictures, FilePaths, FilePictures, Pictures
from fge.data.sources import DOWNLOADED, download_note
from fge.data.split import Split, unlabelled
from fge.data.splits import (
    Dataset,
    OODImages,
    Reading,
    load_dataset,
    load_raw,
)
from fge.data.tabular import load_table
from fge.data.targets import TargetFacts, outputs_of
from fge.data.workers import default_workers

__all__ = [
    "DOWNLOADED",
    "EVAL_BATCH_SIZES",
    "FEWER",
    "MISSING",
    "POLICIES",
    "TRUTH",
    "ArrayPictures",
    "Column",
    "Crops",
    "Dataset",
    "Encoder",
    "EvalBatches",
    "FilePaths",
    "FilePictures",
    "Mixup",
    "Normaliser",
    "OODImages",
    "Pictures",
    "Policy",
    "Reading",
    "Skipped",
    "Split",
    "Table",
    "TableFacts",
    "TargetFacts",
    "TrainBatches",
    "ViewBatches",
    "balanced_order",
    "check_policy",
    "crops_of",
    "default_padding",
    "default_workers",
    "download_note",
    "find_unreadable",
    "list_images",
    "load_dataset",
    "load_ood",
    "load_raw",
    "load_table",
    "outputs_of",
    "read_images",
    "read_table",
    "unlabelled",
]
