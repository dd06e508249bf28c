"""A plan as a table on the terminal."""

from rich.table import Table

from em.planning.devices import GB, GPUS
from em.planning.plan import Plan


def gigabytes(value: float) -> str:
    """Bytes in GB (10⁹), with as many digits as mean something."""
    return (
        f"{value / GB:.3f}"
        if value < 0.1 * GB
        else f"{value / GB:.2f}"
        if value < 10 * GB
        else f"{value / GB:.0f}"
    )


def duration(seconds: float) -> str:
    """Seconds in a fitting unit."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory_table(plan: Plan) -> Table:
    """Every part of the peak of one device, and its sum."""
    setting = plan.setting
    where = f"{setting.processes} × {plan.device.name}" + (
        f", {setting.strategy}" if setting.processes > 1 else ""
    )
    table = Table(
        title=f"{plan.name}: {plan.model}, peak memory of each device ({where})", title_justify="left"
    )
    table.add_column("part")
    table.add_column("GB", justify="right")
    for name, value in plan.parts.items():
        table.add_row(name, gigabytes(value))
    table.add_section()
    table.add_row("peak", gigabytes(plan.peak))
    return table


def lines(plan: Plan) -> list[str]:
    """What fits where, and how long a step takes, each with what it assumes."""
    many = plan.setting.processes
    found = [f"trains {plan.trained.parameters:,} of {plan.shape.parameters:,} parameters"]
    found.append(f"rows: {plan.work.source}")
    for name, value in plan.fits.items():
        memory = GPUS[name].memory
        fits = "yes" if value <= memory else "no"
        found.append(f"fits on {many} × {name}: {fits}, {gigabytes(value)} of {memory / GB:.0f} GB")
    origin = "measured here" if plan.device.cpu else "data sheet"
    found.append(
        f"{duration(plan.seconds)} per step of {plan.work.tokens * many:,.0f} tokens: "
        f"{plan.flops.total / 1e12:.3g} TFLOP a process at {plan.rate / 1e12:.3g} TFLOP/s ({origin}) × "
        f"{plan.utilisation:g} (assumed utilisation)"
    )
    found.append(
        f"{duration(plan.epoch_hours * 3600)} per epoch of {plan.work.steps:,.0f} steps; "
        f"{plan.work.epochs:.2g} epochs: {duration(plan.epoch_hours * plan.work.epochs * 3600)}"
    )
    if plan.prepare:
        seconds = plan.prepare / (plan.rate * plan.utilisation)
        found.append(
            f"before the first step, to store states of the frozen model: at most {duration(seconds)}"
        )
    if many > 1:
        found.append("communication between devices is not counted")
    return found
