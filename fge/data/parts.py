"""What people call the parts of a data set: folders, tar shards, a column or keys of a dict.

This is a file of its own because all of these places must know the same names.
"""

from __future__ import annotations

from fge.data.raw import VAL_NAMES
from fge.errors import UserError

TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "testing")
PARTS = (
    dict.fromkeys(TRAIN_NAMES, "train")
    | dict.fromkeys(VAL_NAMES, "val")
    | dict.fromkeys(TEST_NAMES, "test")
)
"""The part that a name means."""
UNCLEAR = ("eval", "evaluation")
"""Names that some use for validation and others for test."""


def is_part(name: str) -> bool:
    """Return whether a name is that of a part, in capitals or not.

    >>> is_part("Train"), is_part("testing"), is_part("eval"), is_part("trains")
    (True, True, True, False)
    """
    return name.casefold() in PARTS or name.casefold() in UNCLEAR


def part_of(name: str, where: object) -> str:
    """Return train, val or test for a name of a part.

    >>> part_of("Validation", "photos/Validation")
    'val'

    Raises:
        UserError: it is unclear which part is meant; ``where`` names the place.
    """
    if name.casefold() in UNCLEAR:
        raise UserError(f"{where} may be the validation or the test part; call it val or test")
    return PARTS[name.casefold()]
