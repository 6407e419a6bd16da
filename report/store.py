"""The stores of vectors as a table."""

from collections.abc import Sequence

from tercet.models.housekeeping import Stored
from tercet.report.table import Row


def store_table(stores: Sequence[Stored]) -> list[Row]:
    """A row per store, in the order given. The name begins its folder's."""
    return [
        {
            "Store": store.place.name[:8],
            "Model": store.model,
            "Role": store.manifest.role if store.manifest else store.kind,
            "Rows": f"{store.manifest.rows:,}" if store.manifest else "?",
            "Dim": f"{store.manifest.dim:,}" if store.manifest else "?",
            "MB": f"{store.size / 1e6:,.1f}",
            "Last used (UTC)": f"{store.used:%Y-%m-%d %H:%M}",
            "State": store.state,
        }
        for store in stores
    ]
