"""PromQL from the catalogue: a metric or a label that there is not is an error here, not an empty panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasspoint.telemetry.catalogue import COULD_BE_HITS, METRICS

if TYPE_CHECKING:
    from dashboards.objectives import Objective

__all__ = [
    "METRIC_LABELS",
    "allowed_failures",
    "burn_rate",
    "cpu",
    "hit_ratio",
    "metric",
    "or_zero",
    "pool_in_use",
    "postgres",
    "quantile",
    "rate",
    "redis",
    "share",
]

METRIC_LABELS: dict[str, tuple[str, ...]] = {each.name: each.labels for each in METRICS.values()}
"""Every metric of Glasspoint, without its prefix, and its labels besides `saver`."""

_CHOSEN = ("job", "instance", "saver")
_PARTS = {"histogram": ("bucket", "sum", "count"), "summary": ("sum", "count")}
_OPERATORS = ("=~", "!=", "!~")


def metric(name: str, part: str = "", /, **labels: str) -> str:
    """Return a selector of what is chosen at the top of the board.

    Args:
        name: As the catalogue has it.
        part: Of a histogram: `bucket`, `sum` or `count`; of a summary: `sum` or `count`.
        labels: Label -> value; `=~`, `!=` and `!~` may stand before it.

    Raises:
        LookupError: there is no such metric, no such part of it, or no such label on it.
    """
    known = METRIC_LABELS[name]
    if part not in _PARTS.get(METRICS[name].kind, ("",)):
        raise LookupError(f"{name} is a {METRICS[name].kind}: {part!r} does not go with it")
    if unknown := set(labels) - {*known, *(("le",) if part == "bucket" else ())}:
        raise LookupError(f"{name} has no label {', '.join(sorted(unknown))}")
    chosen = [f'{label}=~"${label}"' for label in _CHOSEN]
    matchers = ",".join([*chosen, *(_matcher(label, value) for label, value in labels.items())])
    return f"glasspoint_{name}{'_' if part else ''}{part}{{{matchers}}}"


def redis(name: str, **labels: str) -> str:
    """Return a selector of a metric of the Redis exporter."""
    return _exported(f"redis_{name}", "redis", labels)


def postgres(name: str, **labels: str) -> str:
    """Return a selector of a metric of the PostgreSQL exporter."""
    return _exported(f"pg_{name}", "postgres", labels)


def rate(selector: str, window: str = "$__rate_interval") -> str:
    """Return the increase a second."""
    return f"rate({selector}[{window}])"


def share(part: str, whole: str) -> str:
    """Return `part / whole`: nothing instead of NaN where there is no whole."""
    return f"{part} / ({whole} > 0)"


def or_zero(vector: str, label: str = "") -> str:
    """Return zero where nothing was counted so far; the series is called `none`, if it has a label."""
    return (
        f'{vector} or on() label_replace(vector(0), "{label}", "none", "", "")'
        if label
        else f"{vector} or vector(0)"
    )


def quantile(q: float, name: str, by: tuple[str, ...] = (), /, **labels: str) -> str:
    """Return a quantile of a histogram, over all processes that are chosen."""
    kept = ", ".join(("le", *by))
    return f"histogram_quantile({q}, sum by ({kept}) ({rate(metric(name, 'bucket', **labels))}))"


def hit_ratio(by: tuple[str, ...] = ()) -> str:
    """Return hits, as a share of the reads that Redis could have answered."""
    kept = f" by ({', '.join(by)})" if by else ""
    hits, reads = (
        f"sum{kept} ({rate(metric('l1_reads_total', result=result))})"
        for result in ("hit", f"=~{COULD_BE_HITS}")
    )
    return share(hits, reads)


def cpu() -> str:
    """Return how many cores each process with a saver uses, as `prometheus_client` tells it."""
    used = rate('process_cpu_seconds_total{job=~"$job",instance=~"$instance"}')
    return f"sum by (instance) ({used} and on (job, instance) {metric('info')})"


def pool_in_use() -> str:
    """Return what share of its connections each pool uses."""
    in_use, allowed = metric("pool_connections", state="in_use"), metric("pool_max_connections")
    return f"{in_use} / ignoring(state) ({allowed} > 0)"


def allowed_failures(objective: Objective, window: str) -> str:
    """Return the share of calls that were not good: failed, or of those that did not fail, too slow."""
    name = "operation_duration_seconds"
    of = {"operation": _any(objective.operations)}
    if objective.within_seconds is None:
        failed = f"(sum({rate(metric(name, 'count', **of, outcome='error'), window)}) or vector(0))"
        return share(failed, f"sum({rate(metric(name, 'count', **of, outcome='=~ok|error'), window)})")
    good = {**of, "outcome": "ok"}
    in_time = f"sum({rate(metric(name, 'bucket', **good, le=str(objective.within_seconds)), window)})"
    answered = f"sum({rate(metric(name, 'count', **good), window)})"
    return f"1 - {share(in_time, answered)}"


def burn_rate(objective: Objective, window: str) -> str:
    """Return how many times faster than planned an objective's allowance is used up."""
    return f"({allowed_failures(objective, window)}) / (1 - {objective.target})"


def _any(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else f"=~{'|'.join(values)}"


def _exported(name: str, variable: str, labels: dict[str, str]) -> str:
    matchers = [f'instance=~"${variable}"', *(_matcher(label, value) for label, value in labels.items())]
    return f"{name}{{{','.join(matchers)}}}"


def _matcher(label: str, value: str) -> str:
    operator, text = (value[:2], value[2:]) if value.startswith(_OPERATORS) else ("=", value)
    return f'{label}{operator}"{text}"'
