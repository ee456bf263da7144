"""Numbers: a regression by the squared error, with a Gaussian around its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fge import metrics
from fge.config import TaskName
from fge.networks import LossFn, Output
from fge.tasks.base import (
    NLL,
    SQUARES_OF_PLANS,
    Array,
    Averaged,
    Column,
    Measure,
    PerExample,
    PlanLoss,
    Task,
)
from fge.tasks.losses import SquaredError


@dataclass(frozen=True)
class Regression(Task):
    """Numbers (N, K), by outputs that are standardised with the training targets.

    ``mean`` and ``std`` (K,) are those of the training targets. The predicted Gaussian has the
    variance over members plus a noise variance.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    name: ClassVar[TaskName] = "regression"
    columns: ClassVar[tuple[Column, ...]] = (
        ("rmse", "RMSE", "{:.4g}"),
        ("mae", "MAE", "{:.4g}"),
        ("r2", "R²", "{:.4f}"),
        NLL,
        ("coverage", "90 % interval", "{:.1f}"),
    )
    measure: ClassVar[Measure] = Measure("rmse", "RMSE", "{:.4g}", "{:.4g}")
    training: ClassVar[Measure] = Measure("loss", "loss", "{:.4f}", "{:.4f}")
    training_words: ClassVar[str] = "squared error of standardised targets"
    compared: ClassVar[Measure] = Measure("mse", "squared error", "{:.4g}", "{:.4g}")
    more: ClassVar[tuple[Column, ...]] = (
        *(("mae", "MAE", "{:.4g}"), ("r2", "R²", "{:.4f}")),
        ("coverage", "90 % interval", "{:.1f}"),
    )
    calibration: ClassVar[str] = (
        "The calibrated NLL has the noise variance of the other half of the test set, as "
        "arXiv 2002.06470 has a temperature, and not that of validation data. What is compared is "
        "the squared error; RMSE is the root of its mean."
    )
    units: ClassVar[str] = (
        "RMSE and MAE are in the units of the targets; NLL, in nats per {example}, is that of a "
        "Gaussian whose variance is the members' variance plus a noise variance; the last figure "
        "is the percentage of the targets in its intervals of 90 %."
    )
    array: ClassVar[str] = "predictions"
    uses_noise: ClassVar[bool] = True
    plan: ClassVar[PlanLoss] = SQUARES_OF_PLANS

    @property
    def output(self) -> Output:
        """The numbers in the units of the targets."""
        return self.restored

    def restored(self, outputs: Tensor) -> Tensor:
        """Return predictions (N, K) in the targets' units from standardised outputs."""
        mean, std = self._statistics(outputs.device)
        return outputs.reshape(outputs.shape[0], -1).double() * std + mean

    def loss(self, device: torch.device) -> LossFn:
        """Return the squared error of standardised targets."""
        return SquaredError(*self._statistics(device))

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (K,) on a device."""
        mean, std = (
            torch.tensor(values, dtype=torch.float64, device=device)
            for values in (self.mean, self.std)
        )
        return mean, std

    def figures(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return the figures of :func:`fge.metrics.regression_summary`."""
        spread, noise = self._variances(mean, targets, spread, noise)
        return metrics.regression_summary(mean, targets, noise, spread)

    def scores(
        self, mean: ArrayLike, targets: ArrayLike, spread: ArrayLike | None = None
    ) -> tuple[float, float]:
        """Return RMSE, and the NLL with the noise variance that suits these examples best."""
        return metrics.rmse(mean, targets), float(self._nll(mean, targets, spread).mean())

    def nll_per_example(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the NLL (N,) with the noise variance that suits these examples best."""
        return self._nll(mean, targets, None)

    def tempered(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the same: the noise variance is what a temperature is for probabilities."""
        return self.nll_per_example(mean, targets)

    def plan_losses(self, mean: ArrayLike, targets: ArrayLike) -> Array:
        """Return the squared error (N,) in parts of the variance of the training targets."""
        numbers, wanted = (
            (np.asarray(values, dtype=np.float64) - self.mean) / self.std
            for values in (mean, targets)
        )
        return metrics.squared_residuals(numbers, wanted)

    def fitted_loss(self, mean: ArrayLike, targets: ArrayLike) -> float:
        """Return the mean of the same."""
        return float(self.plan_losses(mean, targets).mean())

    def decisive(self, mean: ArrayLike, targets: ArrayLike) -> int:
        """Return the number of all examples: a number is never exactly right."""
        del mean
        return len(np.asarray(targets))

    def _nll(self, mean: ArrayLike, targets: ArrayLike, spread: ArrayLike | None) -> Array:
        spread, noise = self._variances(mean, targets, spread, None)
        return metrics.gaussian_nll_per_example(mean, targets, noise, spread)

    def noise(
        self, mean: ArrayLike, targets: ArrayLike, spread: ArrayLike | None = None
    ) -> Array | None:
        """Return the noise variance (K,) of data that the network was not trained on."""
        return metrics.fit_noise(mean, targets, 0.0 if spread is None else spread)

    def per_example(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> PerExample:
        """Return the squared residual of each example, and its Gaussian NLLs."""
        spread, noise = self._variances(mean, targets, spread, noise)
        return PerExample(
            metrics.squared_residuals(mean, targets),
            metrics.gaussian_nll_per_example(mean, targets, noise, spread),
            metrics.calibrated_gaussian_nll(mean, targets, spread),
        )

    def diversity(self, members: Sequence[Array], targets: ArrayLike) -> dict[str, float]:
        """Return the members' standard deviation around their mean, and their squared error."""
        stack = np.array(members)
        squares = [metrics.squared_residuals(member, targets).mean() for member in members]
        nlls = [metrics.calibrated_gaussian_nll(member, targets).mean() for member in members]
        return {
            "spread": float(np.sqrt(stack.var(axis=0).mean())),
            "mean_member_mse": float(np.mean(squares)),
            "mean_member_nll": float(np.mean(nlls)),
        }

    def detection(self, inside: Averaged, outside: Averaged) -> dict[str, float]:
        """Return the AUROC by the variance over members, in parts of that of the targets.

        Of one network there is none: it is as certain of one number as of another.
        """
        spreads = [found.spread for found in (inside, outside) if found.spread is not None]
        if len(spreads) < 2 or not np.any(spreads[0]):
            return {}
        doubts = [(np.asarray(s) / np.square(self.std)).mean(axis=1) for s in spreads]
        return {"variance": metrics.auroc(*doubts)}

    def _variances(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None,
        noise: ArrayLike | None,
    ) -> tuple[ArrayLike, ArrayLike]:
        """Return the variances, 0 over members and the best noise of these data by default."""
        spread = 0.0 if spread is None else spread
        return spread, metrics.fit_noise(mean, targets, spread) if noise is None else noise

    def extra(
        self,
        mean: ArrayLike,
        targets: ArrayLike,
        spread: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return the mean squared residual, whose differences have intervals."""
        del spread, noise
        return {"mse": float(metrics.squared_residuals(mean, targets).mean())}
