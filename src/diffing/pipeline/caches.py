"""`pipeline.mode=cache`: lists caches of activations, checks them, and deletes them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffing.activations.announcing import size_of
from diffing.activations.caches import CacheEntry, chosen_caches, damaged_in, delete_cache
from diffing.core.errors import UserError
from diffing.core.files import disk_errors
from diffing.core.settings import RunConfig

_PLAIN_WIDTH = 160


def tend_caches(settings: RunConfig) -> None:
    """Do what `cache.action` says to the caches that `cache.name` and `cache.older_than_days` choose.

    Raises:
        UserError: No such cache, damage was found, or a deletion names no cache.
    """
    base_dir, asked = Path(settings.infrastructure.storage.base_dir).expanduser(), settings.cache
    if asked.action == "delete" and asked.name is None and asked.older_than_days is None:
        raise UserError(
            "cache.action=delete needs cache.name=NAME (as pipeline.mode=cache lists it, or all) "
            "or cache.older_than_days=N."
        )
    entries = chosen_caches(base_dir, asked.name, asked.older_than_days)
    if not entries:
        print(f"No caches below {base_dir}.")
    elif asked.action == "list":
        _list(entries, base_dir)
    elif asked.action == "verify":
        _verify(entries)
    else:
        _delete(entries)


def _list(entries: Sequence[CacheEntry], base_dir: Path) -> None:
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    table = Table(box=None, pad_edge=False)
    for column in ("name", "belongs to", "data", "tokens", "dtype", "whole", "size", "age", "state"):
        table.add_column(Text(column), overflow="fold")
    for e in entries:
        table.add_row(*(Text(cell) for cell in _row(e)))
    console.print(table)
    total = sum(e.n_bytes for e in entries)
    console.print(Text(f"{_count(len(entries), 'cache')}, {size_of(total)}, below {base_dir / 'activations'}"))
    console.print(Text("cache.action=verify checks them; cache.action=delete cache.name=NAME removes one."))


def _row(entry: CacheEntry) -> tuple[str, ...]:
    tokens = "–" if entry.n_tokens is None else f"{entry.n_tokens:,}"
    unfinished = f" (+{len(entry.unfinished)} unfinished)" if entry.unfinished else ""
    return (
        entry.name,
        entry.pair,
        entry.data,
        tokens,
        entry.dtype,
        _places(entry.whole) + unfinished,
        size_of(entry.n_bytes),
        _age(entry.age_days),
        entry.status,
    )


def _places(slots: Sequence[str]) -> str:
    """`residual 0–29, mlp 3, 7`: sites with the layers they are whole in."""
    layers: dict[str, list[int]] = {}
    for slot in slots:
        layer, _, site = slot.partition("/")
        layers.setdefault(site, []).append(int(layer.removeprefix("layer_")))
    return ", ".join(f"{site} {_ranges(sorted(found))}" for site, found in layers.items()) or "none"


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)


def _age(days: float) -> str:
    if days < 1:
        return f"{24 * days:.0f} h" if days > 1 / 24 else f"{24 * 60 * days:.0f} min"
    return f"{days:.0f} d"


def _verify(entries: Sequence[CacheEntry]) -> None:
    damaged = {entry.name: damaged_in(entry) for entry in entries}
    for entry in entries:
        files = damaged[entry.name]
        state = f"DAMAGED: {_count(len(files), 'file')}" if files else "whole"
        print(f"{entry.name}  {state}  {size_of(entry.n_bytes)}")
        for path in files:
            print(f"  {path}")
    n_files = sum(len(files) for files in damaged.values())
    if n_files:
        first = next(files[0] for files in damaged.values() if files)
        raise UserError(
            f"{_count(n_files, 'file')} not as the checksums say, the first is {first}; run the command that made the "
            "cache with pipeline.mode=preprocessing: what is damaged is computed again."
        )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _delete(entries: Sequence[CacheEntry]) -> None:
    for entry in entries:
        with disk_errors(entry.folder, "change its permissions, or remove it by hand"):
            delete_cache(entry)
        print(f"Deleted {entry.name}: {entry.pair}, {size_of(entry.n_bytes)}")
