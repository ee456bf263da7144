"""Speed choices kept in the user's cache folder, so that equal runs choose alike.

A measurement hangs on what else the machine does, and precision, memory format and compilation
change the last bits of the weights. So it is made once for each setting: a network's structure, its
batch, the hardware, the threads, the options, the versions and about how many steps are trained.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fge import __version__
from fge.config import CacheUse, SpeedOptions
from fge.devices import hardware_name
from fge.errors import one_line
from fge.files import parse_json, read_bytes, sha256, write_json
from fge.train.speed import Choice, considered, options_of, speed_of

FOLDER_VARIABLE = "FGE_CACHE"
"""The environment variable that names another cache folder."""
_VERSION = 1
_LOCK_SECONDS, _LOCK_PATIENCE = 0.2, 600.0
_FORMAT = "%Y-%m-%d %H:%M UTC"
_CHOICES = {
    "channels_last": ("on", "off"),
    "amp": ("off", "bf16", "fp16"),
    "compile": ("on", "off"),
    "cuda_graphs": ("on", "off"),
}


class _Content(TypedDict):
    """A file of the cache."""

    schema_version: int
    measured: str
    choices: dict[str, str]
    reasons: list[str]
    setting: dict[str, Any]


def cache_folder() -> Path | None:
    """Return the folder of kept choices: ``FGE_CACHE``, or the system's for a user's caches.

    It is None where the user has no such folder.
    """
    import platformdirs

    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(os.path.expanduser(given)).absolute() / "speed"
    folder = Path(platformdirs.user_cache_dir("fge", appauthor=False))
    return folder / "speed" if folder.is_absolute() else None  # without a home it is ~/...


def architecture_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a network's structure; its weights do not matter.

    The structure is the types of all layers, PyTorch's own with their arguments, and the names,
    shapes and dtypes of parameters and buffers.

    >>> small, large = architecture_digest(nn.Linear(2, 3)), architecture_digest(nn.Linear(2, 4))
    >>> small == architecture_digest(nn.Linear(2, 3)), small == large
    (True, False)
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        kind = type(module)
        # What a user's own module says of itself may hold an address, which no two runs share.
        own = kind.__module__.partition(".")[0] == "torch"
        arguments = module.extra_repr() if own else ""
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__}({arguments})\n".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        trained = "trained" if parameter.requires_grad else "fixed"
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {trained}\n".encode())
    for name, buffer in model.named_buffers(remove_duplicate=False):
        digest.update(f"{name} {tuple(buffer.shape)} {buffer.dtype}\n".encode())
    return digest.hexdigest()


def typical_steps(steps: int) -> int:
    """Return what stands for all numbers of steps between the same two powers of two.

    >>> [typical_steps(steps) for steps in (1, 1000, 1023, 1024)]
    [1, 724, 724, 1448]
    """
    return round(2 ** (max(1, steps).bit_length() - 0.5)) if steps > 1 else 1


def speed_setting(
    options: SpeedOptions,
    model: nn.Module,
    inputs: Tensor,
    *,
    steps: int,
    own_model: bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Return all that a choice of speed may depend on, as JSON values; equal ones choose alike.

    The arguments are those of :func:`fge.train.choose_speed`. The steps count only where
    compilation is open, and then as :func:`typical_steps`.
    """
    open_options = considered(options, inputs.device, own_model=own_model, processes=processes)
    given = {name: getattr(open_options, name) for name in _CHOICES}
    return {
        "network": architecture_digest(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": list(inputs.shape),
        "dtype": str(inputs.dtype),
        "device": f"{inputs.device.type}: {hardware_name(inputs.device)}",
        "threads": torch.get_num_threads(),
        "options": given,
        "steps": typical_steps(steps) if given["compile"] == "auto" else None,
        "torch": torch.__version__,
        "fge": __version__,
    }


@dataclass(frozen=True)
class Kept:
    """A choice and where it is from: in words, for the line that shows it."""

    choice: Choice
    source: str


class SpeedCache:
    """Choices by setting, each in a JSON file of its own; no run needs them.

    A file that is damaged is replaced; a folder that cannot be written costs a measurement in each
    run. Processes that want the same choice at once get the one that is made first.

    Args:
        use: ``on``, ``refresh`` to measure again, ``off`` to neither read nor write.
        note: called with a sentence about what the user may want to know.
        folder: of the files, by default :func:`cache_folder`.
    """

    def __init__(
        self, use: CacheUse, note: Callable[[str], None], folder: Path | None = None
    ) -> None:
        self.use = use
        self.note = note
        self.folder = folder or (cache_folder() if use != "off" else None)

    def choice(self, setting: dict[str, Any], measure: Callable[[], Choice]) -> Kept:
        """Return the choice kept for a setting, or else what ``measure`` returns, and keep it."""
        if "auto" not in setting["options"].values():
            return Kept(measure(), "as given")
        if self.use == "off":
            return Kept(measure(), "measured now and not kept, by --speed-cache off")
        if self.folder is None:
            self.note("speed choices are not kept, because there is no home folder; set FGE_CACHE")
            return Kept(measure(), "measured now and not kept")
        file = self.folder / f"{_digest(setting)[:16]}.json"
        if self.use == "on" and (kept := self._read(file, setting)):
            return kept
        with self._alone(file):
            # Another process may have measured it while this one waited for the lock.
            if self.use == "on" and (kept := self._read(file, setting, told=True)):
                return kept
            choice = measure()
            if self.use == "on" and (kept := self._read(file, setting, told=True)):
                return kept  # from a process that no lock could keep waiting
            return Kept(choice, self._write(file, setting, choice))

    def _read(self, file: Path, setting: dict[str, Any], *, told: bool = False) -> Kept | None:
        """Return what a file holds, or None; say so if it is damaged, unless it is ``told``."""
        if not file.exists():
            return None
        try:
            content = parse_json(read_bytes(file), _Content, "it is damaged", "it is replaced")
            return _kept(content, json.loads(json.dumps(setting)))
        except (OSError, ValueError) as error:
            if not told:
                self.note(
                    f"{file} cannot be used ({one_line(str(error))}); speed is measured again"
                )
            return None

    def _write(self, file: Path, setting: dict[str, Any], choice: Choice) -> str:
        """Keep a choice; return in words where it is, or say why it is not kept."""
        content = {
            "schema_version": _VERSION,
            "measured": datetime.now(UTC).strftime(_FORMAT),
            "choices": options_of(choice.speed),
            "reasons": choice.reasons,
            "setting": setting,
        }
        try:
            write_json(file, content)
        except OSError as error:
            self.note(
                f"speed choices cannot be kept in {file.parent} ({error.strerror or error}): each "
                f"run measures them; set {FOLDER_VARIABLE} to a folder that can be written"
            )
            return "measured now and not kept"
        return f"measured now and kept in {file}"

    @contextlib.contextmanager
    def _alone(self, file: Path) -> Iterator[None]:
        """Hold the lock of an entry, if the folder has locks: two measurements disturb each other.

        The lock ends with the process that holds it.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
                lock = os.open(file.with_suffix(".lock"), flags, 0o666)
                stack.callback(os.close, lock)
                self._wait(lock)
            yield

    def _wait(self, lock: int) -> None:
        """Wait for a lock, but not for ever: its process may have been stopped."""
        until, told = time.monotonic() + _LOCK_PATIENCE, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    return
            if not told:
                self.note("another process is measuring the same speed; waiting for its choice")
                told = True
            time.sleep(_LOCK_SECONDS)


def _digest(setting: dict[str, Any]) -> str:
    return sha256(json.dumps(setting, sort_keys=True).encode())


def _kept(content: _Content, setting: dict[str, Any]) -> Kept:
    """Return the choice in a file.

    Raises:
        ValueError: it is of another version or setting, or no choice that the options allow.
    """
    if content["schema_version"] != _VERSION:
        raise ValueError(f"schema_version {content['schema_version']}, not {_VERSION}")
    if content["setting"] != setting:
        raise ValueError("it is of another setting")
    choices: dict[str, Any] = {name: content["choices"].get(name) for name in _CHOICES}
    for name, allowed in _CHOICES.items():
        given = setting["options"][name]
        if choices[name] not in (allowed if given == "auto" else (given,)):
            raise ValueError(f"{name} is {choices[name]!r}")
    speed = speed_of(SpeedOptions(**choices))
    when = datetime.strptime(content["measured"], _FORMAT).strftime(_FORMAT)
    source = f"measured on {when}; --speed-cache refresh measures again"
    return Kept(Choice(speed, content["reasons"]), source)
