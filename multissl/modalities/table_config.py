"""The options of modalities whose samples are files: how a table that lists them is read.  State: none."""

from __future__ import annotations

from dataclasses import dataclass

from multissl.contract.modality import Modality
from multissl.sources.base import TableOptions


@dataclass(kw_only=True, slots=True)
class TableConfig(Modality.Config):
    """Options of tables that list files or hold them."""

    column: str = ""
    """The column of a table that holds the files or their names; empty: the usual names. data.image is the entry of a
    nested column."""
    label: str = ""
    """The column of a table that holds the class; empty: label, class, target or another usual name."""
    delimiter: str = ""
    """What parts the cells of a .csv file, one character or tab, semicolon, bar; empty: found in the file."""
    missing: tuple[str, ...] = ()
    """More words that stand for a missing cell, beside NA, NaN, null, None and what else pandas takes for one."""

    def table_options(self) -> TableOptions:
        """Return how a table is read."""
        return TableOptions(self.column, self.label, self.delimiter, self.missing)
