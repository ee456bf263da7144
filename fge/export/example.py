"""A short script beside an exported file, which uses it without this package."""

from __future__ import annotations

from fge.export.facts import FACTS, Facts
from fge.export.files import Format

_SCRIPT = """\
\"\"\"Name the class of each image file: python {script} IMAGE ...

This needs {needs}, and not the package that made the file.
\"\"\"
import json, pathlib, sys
import numpy, {runtime}
from PIL import Image, ImageOps

file = pathlib.Path(__file__).with_name({file!r})
{read}
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("{mode}")
{size}
    pixels = numpy.array(image).reshape({height}, {width}, {channels}).transpose(2, 0, 1)
    [probs] = {predict}
    print(path, facts["classes"][probs.argmax()], f"{{float(probs.max()):.6f}}")
"""
_READ: dict[Format, str] = {
    "onnx": f"""\
session = onnxruntime.InferenceSession(file)
facts = json.loads(session.get_modelmeta().custom_metadata_map["{FACTS}"])""",
    "pt2": f"""\
extra = {{"{FACTS}": ""}}
model = torch.export.load(file, extra_files=extra).module()
facts = json.loads(extra["{FACTS}"])""",
}
_PREDICT: dict[Format, str] = {
    "onnx": 'session.run(None, {"images": pixels[None]})[0]',
    "pt2": "model(torch.from_numpy(pixels[None])).numpy(force=True)",
}
_RUNTIME: dict[Format, str] = {"onnx": "onnxruntime", "pt2": "torch"}
_AS_THEY_ARE = """\
    if image.size != ({width}, {height}):
        sys.exit(f"{{path}} has {{image.size}} pixels, not ({width}, {height}): resize it")"""
_RESIZED = """\
    wide, high = ({side} * length // min(image.size) for length in image.size)
    left, top = round((wide - {side}) / 2), round((high - {side}) / 2)
    image = image.resize((wide, high), Image.BILINEAR)
    image = image.crop((left, top, left + {side}, top + {side}))"""


def example_script(kind: Format, file: str, script: str, facts: Facts) -> str:
    """Return a script that predicts image files with an exported file beside it.

    Images are turned upright, and where the run did so they are resized and their centre is
    cropped. Resizing differs from torchvision's by rounding, one grey level at most.

    Args:
        kind: of the file.
        file: its name.
        script: the name of the script.
        facts: in the file.
    """
    size = _AS_THEY_ARE if facts.resize is None else _RESIZED
    return _SCRIPT.format(
        script=ascii(script).replace('"', '\\"'),
        needs=f"{_RUNTIME[kind]}, numpy and pillow",
        runtime=_RUNTIME[kind],
        file=file,
        read=_READ[kind],
        predict=_PREDICT[kind],
        mode="L" if facts.channels == 1 else "RGB",
        size=size.format(height=facts.height, width=facts.width, side=facts.resize),
        height=facts.height,
        width=facts.width,
        channels=facts.channels,
    )
