"""A deployable ensemble as one file, for other programs: ONNX, and PyTorch's exported programs."""

from fge.export.example import example_script
from fge.export.facts import FACTS, Facts, ImageInput, RowInput
from fge.export.files import (
    FORMATS,
    HALF_TOLERANCE,
    TOLERANCE,
    Format,
    check_packages,
    check_size,
    encoded,
    onnx_reader,
    program_reader,
    save,
)
from fge.export.program import exported_program
from fge.export.rows import EncodeRows, raw_rows

__all__ = [
    "FACTS",
    "FORMATS",
    "HALF_TOLERANCE",
    "TOLERANCE",
    "EncodeRows",
    "Facts",
    "Format",
    "ImageInput",
    "RowInput",
    "check_packages",
    "check_size",
    "encoded",
    "example_script",
    "exported_program",
    "onnx_reader",
    "program_reader",
    "raw_rows",
    "save",
]
