"""What a query asks of candidates, with the meaning that Vertex AI Vector Search gives to restricts.

Reference: https://cloud.google.com/vertex-ai/docs/vector-search/filtering
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import RequestError

COMPARISONS: Mapping[str, Callable[[Any, float], Any]] = {
    "LESS": operator.lt,
    "LESS_EQUAL": operator.le,
    "EQUAL": operator.eq,
    "GREATER_EQUAL": operator.ge,
    "GREATER": operator.gt,
    "NOT_EQUAL": operator.ne,
}
"""The operators of Vector Search's numeric restricts."""


@dataclass(frozen=True)
class Comparison:
    """A candidate's number compared with the query's.

    Args:
        namespace: of the number; candidates without one in it do not match.
        op: one of COMPARISONS, the candidate's number on its left.
        value: finite.
    """

    namespace: str
    op: str
    value: float

    def __post_init__(self) -> None:
        if self.op not in COMPARISONS:
            raise RequestError(f"{self.op!r} is no comparison of {self.namespace!r}: take one of {list(COMPARISONS)}")
        value: Any = self.value
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise RequestError(f"{self.namespace!r} is compared with {str(value)[:40]}: give a finite number")
        object.__setattr__(self, "value", number)

    def holds(self, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
        """For each number whether it holds; NaN, which is no number, never does."""
        found: NDArray[np.bool_] = COMPARISONS[self.op](numbers, self.value)
        return found & ~np.isnan(numbers) if self.op == "NOT_EQUAL" else found


@dataclass(frozen=True, eq=False)
class Restricts:
    """Which candidates a query wants; all of it must hold.

    A namespace whose tokens are all denied ones lets through every candidate that has none of them. A candidate may
    itself deny tokens: a query that allows one of them does not find it.

    Args:
        allow: namespace -> tokens, of which a candidate needs at least one.
        deny: namespace -> tokens, of which a candidate may have none.
        numeric: comparisons of numbers.
    """

    allow: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    deny: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    numeric: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        for what, of in (("allow", self.allow), ("deny", self.deny)):
            for namespace, tokens in of.items():
                if not isinstance(tokens, AbstractSet) or not tokens:
                    raise RequestError(f"{what} {namespace!r} is {tokens!r}: give a set of at least one token")
            # Copies, since answers are remembered by what was asked for.
            object.__setattr__(self, what, {namespace: frozenset(tokens) for namespace, tokens in of.items()})

    def __bool__(self) -> bool:
        return bool(self.allow or self.deny or self.numeric)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Restricts) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def namespaces(self) -> frozenset[str]:
        """All that are named."""
        return frozenset({*self.allow, *self.deny, *(comparison.namespace for comparison in self.numeric)})

    @cached_property
    def _key(self) -> tuple[frozenset[Any], ...]:
        allow, deny = (
            frozenset((namespace, frozenset(tokens)) for namespace, tokens in of.items())
            for of in (self.allow, self.deny)
        )
        return allow, deny, frozenset(self.numeric)
