"""The readable summary at the end of a run, on stdout."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from diffing.core.blocks import Block, Heading, Paragraph, Table
from diffing.core.method import load_method
from diffing.core.result import Result
from diffing.display.calibrated import judged, stable

_PLAIN_WIDTH = 130


def print_result(result: Result) -> None:
    """What was compared, the method's headline, and where the files are."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    method = load_method(result.method)
    pair, data = result.manifest["pair"], result.manifest["data"]
    variant = "" if pair["variant"] == "default" else f" ({pair['variant']})"
    console.print()
    console.print(Text(f"{method.title}: {pair['organism']}{variant} against {pair['model']}", style="bold"))
    tokens = f"{data['n_tokens']:,} tokens; " if data["n_tokens"] else ""
    console.print(Text(f"{tokens}base {pair['base_id']}, finetuned {pair['finetuned_id']}"))
    for block in method.headline(result).blocks:
        console.print()
        if isinstance(block, Table):
            console.print(_table(block))
        elif isinstance(block, Paragraph):
            console.print(Text(block.text))
    if result.null_pair == "none":
        console.print()
        console.print(Text(judged(result.calibration())))
    if said := stable(result.stability()):
        console.print(Text(said))
    for note in result.manifest.get("notes", []):
        console.print(Text(f"note: {note}", style="dim"))
    console.print()
    console.print(Text(f"Report: {result.folder / 'report.html'}", no_wrap=True), soft_wrap=True)
    console.print(Text(f"Tables: {result.folder / 'tables'}", no_wrap=True), soft_wrap=True)


def print_blocks(title: str, blocks: Sequence[Block]) -> None:
    """A title and what is below it: headings, tables and paragraphs."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print()
    console.print(Text(title, style="bold"))
    for block in blocks:
        if isinstance(block, Table):
            console.print()
            console.print(_table(block))
        elif isinstance(block, Heading | Paragraph):
            console.print()
            console.print(Text(block.text, style="bold" if isinstance(block, Heading) else ""))


def _table(block: Table) -> RichTable:
    table = RichTable(caption=block.caption or None, caption_justify="left", box=None, pad_edge=False)
    for column in block.columns:
        table.add_column(Text(column), overflow="fold")
    for row in block.rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
