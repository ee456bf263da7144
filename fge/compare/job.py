"""A run of a comparison as a process of its own: ``python -m fge.compare.job FOLDER``.

What the run shows goes to its output; the exit code is that of the command line.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

from fge.config.base import RunConfig
from fge.config.curves import CurveEnsembleConfig
from fge.config.saved import from_options
from fge.config.training import FGEConfig, TrainConfig
from fge.errors import INTERRUPTED, OK, DivergenceError, UserError, outcome

COMMANDS: dict[str, tuple[type[RunConfig], str, str]] = {
    "fge": (FGEConfig, "fge.commands.train", "fge"),
    "train": (TrainConfig, "fge.commands.train_run", "train"),
    "curve-ensemble": (CurveEnsembleConfig, "fge.commands.curves", "curve_ensemble"),
}
"""Commands that are jobs: options, module and function."""


def main(folder: str, text: str) -> int:
    """Run, or go on with, the job that JSON describes in a folder; return the exit code.

    Args:
        folder: of the run.
        text: JSON with ``command`` and ``options``.
    """
    try:
        content = json.loads(text)
        kind, module, function = COMMANDS[content["command"]]
        config = from_options(kind, content["options"], "the comparison")
        out = Path(folder)
        config = replace(config, out=out, resume=out.is_dir())
        if (out / "config.json").is_file():  # it goes on with the threads that it was begun with
            config = replace(config, threads=None)
        getattr(importlib.import_module(module), function)(config)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (UserError, DivergenceError, OSError) as error:
        code, message = outcome(error)
        sys.stderr.write(f"error: {message}\n")
        return code
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin.read()))
