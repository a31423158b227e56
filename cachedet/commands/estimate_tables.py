"""What `estimate` prints for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from cachedet.commands.tables import console, make_table, say
from cachedet.live.mode_names import mode_label, partial_mode
from cachedet.progress import count_of, format_seconds
from cachedet.store.files.durable import readable_nbytes
from cachedet.text import printable

if TYPE_CHECKING:
    from cachedet.estimate import EstimateReport
    from cachedet.estimation.cluster_plan import ClusterPlan
    from cachedet.estimation.forecast import Forecast, ModeForecast


def print_estimate(report: EstimateReport, *, heads: str) -> None:
    """The verdict, then tables of the cache, extraction, training and cuts, and what follows."""
    from cachedet.estimation.advice import give_verdict

    measured = report.measured
    say(f"is a cache worth it? {give_verdict(measured, report.forecast)}")
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
    if report.forecast.cuts:
        console.print(_cut_table(report.forecast))
    if report.cluster is not None:
        console.print(_cluster_table(report.cluster))
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
        mark = " (the config)" if name == report.forecast.mode != "cached" else ""
        table.add_row(f"{mode_label(name)}{mark}", *_cells(mode, has_device=has_device))
    return table


def _cut_table(forecast: Forecast) -> Table:
    title = "stages trained from a store up to a level (freeze_at); epochs until it is repaid"
    columns = ("from", "of cached", "of tuned", "store", "extraction", "repaid: live", "tuned")
    table = make_table(title, *columns, left=["from"])
    live = forecast.modes["live"].seconds_per_epoch
    for name, cut in forecast.cuts.items():
        ours = forecast.modes[partial_mode(name)].seconds_per_epoch
        table.add_row(
            name,
            _share(cut.of_cached),
            _share(cut.of_tuned),
            _size(cut.nbytes),
            _time(cut.extraction_seconds),
            _epochs(cut.break_even_live, is_known=None not in (ours, live)),
            _epochs(cut.break_even_tuned, is_known=cut.of_tuned is not None),
        )
    return table


def _cluster_table(plan: ClusterPlan) -> Table:
    title = (
        f"{count_of(plan.workers, 'machine')} and a bucket, simulated: "
        f"{readable_nbytes(round(plan.nbytes))}, {plan.objects:,} objects"
    )
    traffic, epoch = plan.traffic, plan.epoch
    rows = [
        ("time", _time(plan.seconds)),
        ("bottleneck", plan.bottleneck),
        ("PUT", f"{traffic.puts:,}"),
        ("GET", f"{traffic.gets:,}"),
        ("HEAD", "0"),
        ("LIST", f"{traffic.lists:,}"),
        ("sent", _size(traffic.sent)),
        ("received", _size(traffic.received)),
    ]
    there = ["-"] * len(rows)
    if epoch is not None:
        there = [_time(epoch.seconds), epoch.bottleneck, "0", f"{epoch.gets:,}"]
        there += [f"{epoch.heads:,}", f"{epoch.lists:,}", "0", _size(epoch.nbytes)]
    table = make_table(title, "", "extraction", "first epoch", left=[""])
    for row, cell in zip(rows, there, strict=True):
        table.add_row(*row, cell)
    return table


def _cells(mode: ModeForecast, *, has_device: bool) -> list[str]:
    if mode.seconds_per_epoch is None:
        return ["-", printable(mode.failure), "-", *(["-"] if has_device else [])]
    cells = [_time(mode.seconds_per_epoch), mode.bottleneck, _size(mode.ram)]
    return [*cells, *([_size(mode.device)] if has_device else [])]


def _summary(report: EstimateReport) -> list[str]:
    forecast = report.forecast
    lines = []
    if forecast.gain is not None:
        limit = forecast.limit and f"; sparing the whole backbone would be {forecast.limit:.2f}"
        lines.append(
            f"an epoch from the cache is {forecast.gain:.2f} times as fast as "
            f"{mode_label(forecast.rival)}{limit or ''}"
        )
    if report.cluster is not None:
        parts = ", ".join(f"{name} {_time(s)}" for name, s in report.cluster.parts.items())
        lines.append(
            f"into the bucket, alone: {parts}; beside {report.cluster.blocks:,} blocks "
            f"{report.cluster.twice:,} are computed that another machine was faster with"
        )
    for name, cut in forecast.cuts.items():
        lines.append(
            f"cut at {name}, the backbone is {_time(cut.trunk_seconds)} of trunk, which a cache "
            f"spares, and {_time(cut.stages_seconds)} of stages an epoch"
        )
    if forecast.uncut:
        lines.append(f"stages trained from the cache are not forecast: {forecast.uncut}")
    if forecast.read_rate_needed is not None:
        lines.append(
            f"an epoch reads {readable_nbytes(round(forecast.read_rate_needed))}/s, the disk gives "
            f"{readable_nbytes(round(forecast.read_rate))}/s"
        )
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _epochs(value: float | None, *, is_known: bool) -> str:
    if value is None:
        return "never" if is_known else "-"
    return f"{value:.1f}"


def _size(nbytes: float | None) -> str:
    return "unknown" if nbytes is None else readable_nbytes(round(nbytes))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
