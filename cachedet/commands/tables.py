"""What the commands print for a person."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachedet.progress import count_of, tell
from cachedet.store.files.durable import readable_nbytes
from cachedet.text import printable, shorten

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.check import QuickLook
    from cachedet.estimation.prediction import PredictedVsActual
    from cachedet.exporting.agreement import Agreement, SizeAgreement
    from cachedet.extract import ExtractReport
    from cachedet.model import ModelCost
    from cachedet.relabel import RelabelReport
    from cachedet.store.copying import CopyReport
    from cachedet.store.prune import PruneReport
    from cachedet.store.verify import VerifyReport

_MOST_TOLD = 5  # findings, before an extraction
_MOST_CHARACTERS = 240  # of each

console = Console(markup=False, emoji=False, highlight=False)  # names are not to be interpreted


def say(text: object) -> None:
    """Print one line, however long: a path can be copied from it."""
    print(printable(text))


def say_prose(text: str) -> None:
    """Print sentences without paths, wrapped between words to the width of the terminal."""
    lines = textwrap.wrap(
        printable(text), console.width, break_long_words=False, break_on_hyphens=False
    )
    for line in lines:
        print(line)


def name_cell(name: str, *, most: int = 40) -> Text:
    """A name in a table, of `most` characters; one too wide is folded over lines."""
    text = shorten(printable(" ".join(name.split())), most)
    encoding = console.encoding  # of an ASCII or Latin-1 terminal: the escapes need their room
    return Text(text.encode(encoding, "backslashreplace").decode(encoding), overflow="fold")


def make_table(title: str, *columns: str, left: Collection[str] = ()) -> Table:
    """A table without rows; its columns are flush right, but for those in `left`."""
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right")
    return table


def figure(value: float, *, signed: bool = False) -> str:
    """An AP or a share with three digits; a dash for NaN, where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def span(low: float, high: float) -> str:
    """An interval; a dash where there is none."""
    return "-" if math.isnan(low) else f"{figure(low)}-{figure(high)}"


def print_description(description: dict[str, Any]) -> None:
    """What `info` says of a store."""
    rows = [(name.replace("_", " "), _readable(name, value)) for name, value in description.items()]
    if not console.is_terminal:  # for other programs: a line each, however long
        for name, value in rows:
            say(f"{name:<28}{value}")
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, printable(value))
    console.print(table)


def print_copy(report: CopyReport) -> None:
    """Say what arrived, and what the source lacks."""
    for reason in report.bad:
        say(reason)
    there = f"{report.copied} of {report.blocks} blocks copied, {report.held} were there"
    lacking = f"; the source lacks {len(report.missing)}" if report.missing else ""
    damaged = f"; {len(report.bad)} are damaged there" if report.bad else ""
    say(f"{report.target}: {there} ({readable_nbytes(report.nbytes)}){lacking}{damaged}")


_WASTE = {  # `withdrawn` and `image` read alike to who has withdrawn images
    "leftover": "left by dead writers",
    "withdrawn": "bad blocks",
    "view": "views that left",
    "image": "images that left",
    "orphan": "no longer named",
}


def print_waste(report: PruneReport, *, dry_run: bool) -> None:
    """What `prune` frees or would free."""
    title = "would be freed" if dry_run else "freed"
    table = make_table(title, "kind", "files", "size", left=["kind"])
    for waste in report.waste:
        table.add_row(_WASTE[waste.kind], str(len(waste.paths)), readable_nbytes(waste.nbytes))
    console.print(table)
    for path in report.left:
        is_link = not isinstance(path, str) and path.is_symlink()
        what = "a link, and not followed" if is_link else "not a file of the store's"
        say(f"left alone: {path} is {what}")


def print_relabelling(report: RelabelReport, *, dry_run: bool) -> None:
    """What `relabel` changed or would change."""
    for note in report.notes:
        say(f"note    {note}")
    if report.changes is None:
        say("the boxes it had are damaged, so that they cannot be compared with the new ones")
    for line in [] if report.changes is None else report.changes.lines():
        say(line)
    _say_which_images(report, dry_run=dry_run)
    verdict = f"labels {report.truth_before[:12]} became {report.truth[:12]}"
    if report.truth == report.truth_before:
        verdict = "written anew" if report.written else "it has these labels already"
    elif dry_run:
        verdict = "nothing was changed (--dry-run)"
    say(f"{report.store}: {report.images} images, {report.boxes} boxes; {verdict}")


def _say_which_images(report: RelabelReport, *, dry_run: bool) -> None:
    """Images that left the store, came back, or are not in it."""
    left, back = ("would leave", "would come back to") if dry_run else ("left", "came back to")
    if report.images_withdrawn:
        freed = "" if dry_run else f"; `cachedet prune {report.store}` frees what they alone hold"
        gone = count_of(report.images_withdrawn, "image")
        say(f"{gone} {left} the store, {report.images} stay{freed}")
    if report.images_returned:
        say(f"{count_of(report.images_returned, 'image')} {back} the store")
    if report.images_lacking:
        lacking = count_of(report.images_lacking, "image")
        say(f"the file has {lacking} that the store lacks: `cachedet extract` adds them")


def print_cost(cost: ModelCost, *, title: str) -> None:
    """Parameters and FLOPs, part by part."""
    height, width = cost.size_hw
    title = f"{title}: one image of {height} x {width}, {cost.num_classes} classes"
    columns = ("part", "M parameters", "GFLOP forward", "GFLOP a step", "of the step")
    table = make_table(printable(title), *columns, left=["part"])
    for part in (*cost.parts, cost.total):
        table.add_row(
            name_cell(part.name),
            f"{part.parameters / 1e6:.2f}",
            f"{part.forward_flops / 1e9:.2f}",
            f"{part.step_flops / 1e9:.2f}",
            f"{part.step_flops / max(cost.total.step_flops, 1):.0%}",
            end_section=part is cost.parts[-1],
        )
    console.print(table)


def print_agreement(rows: Sequence[SizeAgreement], found: Agreement, *, of: str) -> None:
    """How far an exported file is from torch, size by size."""
    table = make_table(
        f"The file beside torch: {of}", "size", "images", "found", "px", "score", "changed"
    )
    sizes = [(f"{row.padded_hw[0]}x{row.padded_hw[1]}", row.found) for row in rows]
    for size, part in [*sizes, ("all", found)]:
        table.add_row(
            size,
            str(part.images),
            str(part.detections),
            f"{part.box_px:.0e}",
            f"{max(part.score, part.mask):.0e}",
            str(part.changed),
        )
    console.print(table)
    batches = sorted({size for row in rows for size in row.batches})
    say(
        f"largest differences of boxes in pixels, of scores{' and masks' if found.mask else ''}; "
        f"{found.changed} detections changed, {found.at_edge} more at the threshold or the last "
        f"rank; {', '.join(map(str, batches))} images at a time"
    )


def print_faults(report: VerifyReport) -> None:
    """Blocks that `verify` misses or could not accept, and what to do about them."""
    for name in report.missing:
        say(f"missing  {name}")
    for block in report.bad:
        say(f"bad      {block.name}: {block.path}: {block.reason}")
    for unread in report.unreadable:
        say(f"unread   {unread.name}: {unread.reason}")
    if report.stages is not None:
        say(f"bad      {report.stages}")
    if report.missing or any(block.withdrawn for block in report.bad):
        say("the same `cachedet extract` again writes the missing and bad blocks, and no others")
    if not all(block.withdrawn for block in report.bad):
        say("the store is read-only here: the bad blocks could not be withdrawn")


def print_counts(counts: Mapping[str, int]) -> None:
    """What was read, mended and left out of annotations."""
    say(", ".join(f"{count} {what}" for what, count in counts.items() if count))


def tell_before(look: QuickLook) -> None:
    """A line each on standard error, before the work begins; `check` says more of them."""
    for text in look.to_look_at[:_MOST_TOLD]:
        tell(f"look at: {shorten(text, _MOST_CHARACTERS)}")
    more = len(look.to_look_at) - _MOST_TOLD
    if more > 0:
        tell(f"look at: {more} more")
    if look.to_look_at:
        tell("`cachedet check` with the same options says where each is, and what to do")
    if look.unnamed is not None:
        tell(f"note: {shorten(look.unnamed, _MOST_CHARACTERS)}")


def print_extraction(report: ExtractReport) -> None:
    """What `extract` left out, noticed, kept and wrote."""
    for name, reason in report.skipped:
        say(f"skipped {name}: {reason}")
    for name, note in report.notes:
        say(f"note    {name}: {note}")
    if report.views_kept:
        from cachedet.data.views import short_names  # `--help` stays quick

        say(
            "the store keeps views that were not asked for: "
            f"{', '.join(short_names(report.views_kept))} "
            "(`cachedet prune --keep-views` removes views)"
        )
    if report.images_added:
        say(
            f"added to the store: {count_of(report.images_added, 'image')}, and what the "
            "annotations say of all"
        )
    if report.images_returned:
        say(
            f"back in the store: {count_of(report.images_returned, 'image')} that had left it, and "
            "what the annotations say of all"
        )
    print_counts(report.counts)
    say(
        f"{report.store}: {report.images} images, {report.blocks_written} of "
        f"{report.blocks_total} blocks written now, {readable_nbytes(report.nbytes_written)} in "
        f"{report.seconds:.1f} s"
    )
    if report.blocks_missing:
        left = count_of(report.blocks_missing, "block")
        say(f"UNFINISHED: {left} of {report.blocks_total} left to other writers that are at work.")
        say(
            "When they have ended, run the same `cachedet extract` again: it writes what is still "
            "missing, or says that nothing is."
        )


def print_predicted_vs_actual(comparison: PredictedVsActual) -> None:
    """What `estimate` had predicted, and what it was."""
    for name, pair in comparison.items():
        figures = [
            f"{pair[key]:.1f}" if "seconds" in name else readable_nbytes(round(pair[key]))
            for key in ("predicted", "actual")
        ]
        error = pair["predicted"] / pair["actual"] - 1
        say(f"{name}: {figures[0]} predicted, {figures[1]} actual ({error:+.0%})")


def _readable(name: str, value: Any) -> str:
    if name in ("bytes", "bytes_of_withdrawn", "bytes_per_image_and_view"):
        return "-" if value is None else readable_nbytes(round(value))
    if name == "quality":
        return ", ".join(f"{level} {_quality(noise)}" for level, noise in value.items()) or "-"
    if name in ("levels", "network_levels"):
        return ", ".join(map(_level, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items())
    if name == "skipped":
        return ", ".join(f"{file} ({reason})" for file, reason in value) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _level(level: dict[str, Any]) -> str:
    """``C4 112x/16``, ``C4 112x/16 bf16``, ``L9 384x/16 tap`` or ``L8_prefix 192x5 tokens``"""
    name, channels = level["name"], level["channels"]
    of = "".join(f" {word}" for word in ("tap", "bf16") if word in level)
    if "tokens" in level:
        return f"{name} {channels}x{level['tokens']} tokens"
    return f"{name} {channels}x/{level['stride']}{of}"


def _quality(noise: dict[str, float | None]) -> str:
    text = "lossless" if noise["snr_db"] is None else f"{noise['snr_db']:.1f} dB"
    return f"{text}, {noise['saturation']:.1g} saturated" if noise["saturation"] else text
