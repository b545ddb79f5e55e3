"""What every section of the configuration is."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the file, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as a pipeline parameter carries them; KFP has no null, and None is always the default."""
        return self.model_dump(mode="json", exclude_none=True)


SectionType = TypeVar("SectionType", bound=Section)
