"""Numbers with bounds, as pydantic checks them in settings and recipes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

__all__ = ["Count", "Fraction", "NotNegative", "Positive", "Seed"]

# Whoever changes a default writes `steps: Count = 60`: a bare annotation would drop the bound.
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
