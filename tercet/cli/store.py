"""`tercet store`: what earlier runs have kept."""

import sys
from typing import Annotated

import typer

from tercet.cli.app import app, show
from tercet.errors import UserError, did_you_mean

store_app = typer.Typer(
    help="Vectors, candidate lists and scores kept from earlier runs.", no_args_is_help=True
)
app.add_typer(store_app, name="store")


@store_app.command("list")
def store_list() -> None:
    """What is kept in the cache folder, the last used first."""
    from tercet.files import cache_folder
    from tercet.models.housekeeping import all_stored
    from tercet.report import console_table, store_table

    stores = all_stored()
    if stores:
        show(console_table(store_table(stores)))
    size = sum(store.size for store in stores)
    print(f"{len(stores)} stores, {size / 1e6:,.1f} MB in {cache_folder()}")


@store_app.command("verify")
def store_verify() -> None:
    """Hash all files and name the damaged ones (exit status 1). The next run makes them again."""
    from tercet.models.housekeeping import all_stored, damaged

    stores = all_stored()
    bad = damaged(stores)
    for path in bad:
        print(f"damaged: {path}")
    print(f"{len(stores)} stores, {len(bad)} damaged files")
    if bad:
        sys.exit(1)


@store_app.command("prune")
def store_prune(
    older_than: Annotated[float | None, typer.Option(help="Days since a run last used it.")] = None,
    keep_bytes: Annotated[
        str | None, typer.Option(help="Stop when all together are this small: 20GB.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model, as listed.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
) -> None:
    """Remove stores, the longest unused first; several options must all hold."""
    from datetime import timedelta

    from tercet.models.housekeeping import all_stored, read_bytes, remove, to_prune

    if older_than is None and keep_bytes is None and model is None:
        raise UserError("say what to remove: --older-than DAYS, --keep-bytes SIZE or --model NAME")
    if older_than is not None and not 0 <= older_than <= 36_500:
        raise UserError(f"--older-than: {older_than:g} is not a number of days from 0 to 36500")
    stores = all_stored()
    made_by = {name for s in stores if s.manifest for name in (s.model, s.manifest.model)}
    if model is not None and made_by and model not in made_by:
        there = sorted({store.model for store in stores if store.manifest})
        hint = did_you_mean(model, there, f"there are {', '.join(there)}")
        raise UserError(f"--model: no store is of {model!r}; {hint}")
    chosen = to_prune(
        stores,
        older_than=None if older_than is None else timedelta(days=older_than),
        keep_bytes=None if keep_bytes is None else read_bytes(keep_bytes),
        model=model,
    )
    freed = 0
    for store in chosen:
        gone = dry_run or remove(store)
        freed += store.size if gone else 0
        done = "would remove" if dry_run else "removed"
        what = done if gone else "in use or not ours to remove, kept"
        print(f"{what}: {store.place}  ({store.model}, {store.size / 1e6:,.1f} MB)")
    print(f"{freed / 1e6:,.1f} MB {'would be ' if dry_run else ''}freed")
