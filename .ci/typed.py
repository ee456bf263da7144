"""Three lines that use the package, for a type checker beside the installed wheel."""

from torch import nn

import fge

ensemble: fge.Ensemble = fge.Ensemble(nn.Linear(2, 2), [nn.Linear(2, 2)])
curve: fge.Curve = fge.Curve(fge.Bezier(3), nn.Linear(3, 3).weight)
length: float = curve.length()
