"""A short script beside an exported file, which uses it without this package."""

from __future__ import annotations

from fge.config import OF_CLASSES
from fge.export.facts import FACTS, Facts, ImageInput
from fge.export.files import Format

_DOC = """\
\"\"\"{what}: python {script} {arguments}

This needs {needs}, and not the package that made the file.
\"\"\"
"""
_OPEN: dict[Format, str] = {
    "onnx": f"""\
session = onnxruntime.InferenceSession(pathlib.Path(__file__).with_name({{file!r}}))
facts = json.loads(session.get_modelmeta().custom_metadata_map["{FACTS}"])
""",
    "pt2": f"""\
extra = {{{{"{FACTS}": ""}}}}
file = pathlib.Path(__file__).with_name({{file!r}})
model = torch.export.load(file, extra_files=extra).module()
facts = json.loads(extra["{FACTS}"])
""",
}
_RUN: dict[Format, str] = {
    "onnx": 'session.run(None, {{"{name}": {values}}})',
    "pt2": "model(torch.from_numpy({values}))",
}
_IMAGES = """\
import json, pathlib, sys
import numpy, {runtime}
from PIL import Image, ImageOps

{open}for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] == "I":  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray(numpy.uint8(numpy.round(numpy.array(image) / 257)))
    image = image.convert("{mode}")
{size}
    pixels = numpy.array(image)[None{channels}
    {outputs} = {run}
    print(path, {shown})
"""
_ROWS = """\
import csv, json, pathlib, sys
import numpy, {runtime}

{open}for row in csv.DictReader(open(sys.argv[1], encoding="utf-8-sig"), skipinitialspace=True):
    words = [(row[column["name"]].strip(), column) for column in facts["columns"]]
    values = [float(c["codes"].get(word, c.get("unknown", word))) for word, c in words]
    {outputs} = {run}
    print({shown})
"""
_AS_THEY_ARE = (
    "    assert image.size == ({width}, {height}), "
    'f"{{path}} has {{image.size}} pixels, not ({width}, {height}): resize it"'
)
_RESIZED = """\
    wide, high = ({side} * length // min(image.size) for length in image.size)
    left, top = round((wide - {side}) / 2), round((high - {side}) / 2)
    image = image.resize((wide, high), Image.BILINEAR)
    image = image.crop((left, top, left + {side}, top + {side}))"""


def example_script(kind: Format, file: str, script: str, facts: Facts) -> str:
    """Return a script that predicts image files, or a CSV table, with an exported file beside it.

    Images are turned upright, those of 16 bits are scaled to 8, and where the run did so they are
    resized and their centre is cropped. Resizing differs from torchvision's by rounding, one grey
    level at most.

    Args:
        kind: of the file.
        file: its name.
        script: the name of the script.
        facts: in the file.
    """
    given, runtime = facts.given, "onnxruntime" if kind == "onnx" else "torch"
    of_images = isinstance(given, ImageInput)
    outputs, shown = _shown(facts, kind)
    values = "pixels" if of_images else "numpy.array([values])"
    filled = {
        "runtime": runtime,
        "open": _OPEN[kind].format(file=file),
        "outputs": outputs,
        "run": _RUN[kind].format(name=given.name, values=values),
        "shown": shown,
    }
    if isinstance(given, ImageInput):
        size = _AS_THEY_ARE if given.resize is None else _RESIZED
        filled |= {
            "mode": "L" if given.channels == 1 else "RGB",
            "channels": ", None]" if given.channels == 1 else "].transpose(0, 3, 1, 2)",
            "size": size.format(height=given.height, width=given.width, side=given.resize),
        }
    text = (_IMAGES if of_images else _ROWS).format(**filled)
    heading = _DOC.format(
        what=f"Predict {'image files' if of_images else 'the rows of a table'}",
        script=ascii(script).replace('"', '\\"'),
        arguments="IMAGE ..." if of_images else "TABLE.csv",
        needs=f"{runtime}, numpy and pillow" if of_images else f"{runtime} and numpy",
    )
    return heading + text


def _shown(facts: Facts, kind: Format) -> tuple[str, str]:
    """Return the variables of the outputs, and what is printed of them."""
    if facts.task == "regression":
        outputs = "[mean], [variance]"
        return outputs, 'dict(zip(facts["targets"], zip(mean.tolist(), variance.tolist())))'
    outputs = "[[probs]]" if kind == "onnx" else "[probs]"
    if facts.task in OF_CLASSES:
        return outputs, 'facts["classes"][probs.argmax()], f"{probs.max():.6f}"'
    return outputs, 'dict(zip(facts["labels"], probs.tolist()))'
