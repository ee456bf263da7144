"""The two-network curve ensemble: which networks it averages, and what that comes to."""

from __future__ import annotations

from collections.abc import Sequence

from fge.commands.curve_study import CurveStudy
from fge.commands.endpoints import Network
from fge.report.methods import MethodResult, method_result

MIDDLE = 0.5


def member_ts(count: int) -> list[float]:
    """Return ``count`` values of t, evenly spaced from 0 to 1.

    >>> member_ts(3)
    [0.0, 0.5, 1.0]
    """
    return [k / (count - 1) for k in range(count)]


def ensemble_results(
    study: CurveStudy, networks: tuple[Network, Network], *, points: int, weight_bytes: int
) -> list[MethodResult]:
    """Return the lines of a pair: each network, both, with the middle, and along the paths.

    Args:
        study: measured, with predictions of all members.
        networks: the two, as they were trained, predicted already.
        points: members along each path, ends counted.
        weight_bytes: of one network.
    """
    first, second = networks
    epochs = first.train_epochs + second.train_epochs
    fitted = epochs + study.config.fit_epochs
    both = first.validation_images + second.validation_images

    def line(
        name: str, members: Sequence[str], used: int, refreshed: int = 0, validated: int = both
    ) -> MethodResult:
        return method_result(
            name,
            study.predictions.test,
            members,
            train_epochs=used,
            weight_bytes=weight_bytes,
            refresh_images=refreshed * study.refresh_images,
            validation_images=validated,
        )

    def along(path: str, ts: Sequence[float]) -> list[str]:
        # At its ends a segment's networks are the curve's.
        return [study.member("curve" if t in (0, 1) else path, t) for t in ts]

    ts = member_ts(points)
    return [
        *(
            line(name, [n.name], n.train_epochs, validated=n.validation_images)
            for name, n in (("network-1", first), ("network-2", second))
        ),
        line("ends", [first.name, second.name], epochs),
        line("ends+segment-middle", along("segment", [0, MIDDLE, 1]), epochs, 3),
        line("segment", along("segment", ts), epochs, points),
        line("ends+curve-middle", along("curve", [0, MIDDLE, 1]), fitted, 3),
        line("curve", along("curve", ts), fitted, points),
    ]
