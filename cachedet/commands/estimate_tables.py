"""What `estimate` prints for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from cachedet.commands.tables import console, make_table, say
from cachedet.progress import count_of, format_seconds
from cachedet.store.files.durable import readable_nbytes
from cachedet.text import printable

if TYPE_CHECKING:
    from cachedet.estimate import EstimateReport
    from cachedet.estimation.forecast import ModeForecast

_NAMES = {"cached": "cached", "live": "live frozen", "tuned": "fine-tuned"}


def print_estimate(report: EstimateReport, *, heads: str) -> None:
    """Tables of the cache, of its extraction and of training, and what follows."""
    measured = report.measured
    for name, reason in report.skipped:
        say(f"skipped {name}: {reason}")
    views = count_of(len(measured.views), "view")
    say(
        f"{count_of(measured.images, 'image')} in {views} ({', '.join(measured.views)}), heads "
        f"{heads}; tried on {count_of(report.sample, 'image')} in {report.seconds:.0f} s"
    )
    if report.what_if:
        asked = ", ".join(f"{name}={_plain(value)}" for name, value in report.what_if.items())
        say(f"what if {asked}: arithmetic on what was measured here, not measured")
    console.print(_cache_table(report))
    console.print(_extraction_table(report))
    console.print(_training_table(report))
    for line in (*_summary(report), *report.advice):
        say(f"- {line}")
    if report.prediction is not None:
        say(
            f"saved as {report.prediction}: `extract` and `train-heads` will print predicted "
            "against actual"
        )


def _cache_table(report: EstimateReport) -> Table:
    forecast, measured = report.forecast, report.measured
    title = f"cache; {readable_nbytes(int(forecast.free_disk))} free on the disk"
    table = make_table(title, "codec", "size", "an image and view", left=["codec"])
    stored = measured.images * len(measured.views)
    for name, nbytes in forecast.nbytes_by_codec.items():
        mark = " (asked for)" if name == measured.codec else ""
        table.add_row(
            f"{name}{mark}", readable_nbytes(round(nbytes)), readable_nbytes(round(nbytes / stored))
        )
    return table


def _extraction_table(report: EstimateReport) -> Table:
    forecast = report.forecast
    columns = ("part", "time", "bottleneck")
    table = make_table("extraction", *columns, left=["part", "bottleneck"])
    table.add_row("check the images", _time(forecast.scan_seconds), "decode")
    if forecast.fit_seconds > 0:
        table.add_row("fit the codec", _time(forecast.fit_seconds), "backbone")
    table.add_row("extract", _time(forecast.extract_seconds), forecast.extract_bottleneck)
    table.add_row("all", _time(forecast.extraction_seconds), "")
    return table


def _training_table(report: EstimateReport) -> Table:
    modes = report.forecast.modes
    has_device = any(mode.device is not None for mode in modes.values())
    columns = ["", "an epoch", "bottleneck", "peak RAM", *(["device memory"] if has_device else [])]
    table = make_table("training", *columns, left=["", "bottleneck"])
    for name, mode in modes.items():
        table.add_row(_NAMES[name], *_cells(mode, has_device=has_device))
    return table


def _cells(mode: ModeForecast, *, has_device: bool) -> list[str]:
    if mode.seconds_per_epoch is None:
        return ["-", printable(mode.failure), "-", *(["-"] if has_device else [])]
    cells = [_time(mode.seconds_per_epoch), mode.bottleneck, _size(mode.ram)]
    return [*cells, *([_size(mode.device)] if has_device else [])]


def _summary(report: EstimateReport) -> list[str]:
    forecast = report.forecast
    lines = []
    if forecast.gain is not None and forecast.limit is not None:
        lines.append(
            f"an epoch from the cache is {forecast.gain:.2f} times as fast as live; the limit "
            f"(B + H) / H is {forecast.limit:.2f}"
        )
    if forecast.break_even is not None:
        lines.append(
            f"the cache has paid for itself after {forecast.break_even:.1f} epochs; the config "
            f"trains for {report.measured.epochs}"
        )
    elif forecast.gain is not None:
        lines.append("the cache never pays for itself")
    if forecast.read_rate_needed is not None:
        lines.append(
            f"an epoch reads {readable_nbytes(round(forecast.read_rate_needed))}/s, the disk gives "
            f"{readable_nbytes(round(forecast.read_rate))}/s"
        )
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def _size(nbytes: float | None) -> str:
    return "unknown" if nbytes is None else readable_nbytes(round(nbytes))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
