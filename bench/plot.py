"""Figures and a table from results and nothing else: `python -m bench.plot FILE [--out DIR] [--table]`."""

import argparse
from collections import defaultdict
from pathlib import Path

from .record import RESULTS, read

COLORS = {
    "scfmlip": "#0b6e4f",
    "scfmlip-compat": "#73a580",
    "torch": "#8d99ae",
    "graph-longrange": "#d1495b",
    "torch-pme-ewald": "#edae49",
    "torch-pme-mesh": "#c77d02",
    "nvalchemi": "#30638e",
    "nvalchemi-pme": "#00a6fb",
}
Series = dict[str, dict[int, dict[str, str]]]


def latest(rows: list[dict[str, str]], threads: str | None = None) -> dict[tuple[str, ...], Series]:
    """
    The last row of every measurement.

    Returns:
        By (op, mode, dtype, threads), then provider (with " (graph)" where a CUDA graph was replayed), then
        number of atoms. Batches count as an op of their own.
    """
    found: dict[tuple[str, ...], Series] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if threads is not None and row["threads"] != threads:
            continue
        op = row["op"] + (" ragged" if row["ragged"] == "True" else "")
        label = row["provider"] + (" (graph)" if row["captured"] == "True" else "")
        key = (op, row["mode"], row["dtype"], row["threads"])
        found[key][label][int(row["atoms"])] = row
    return found


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: each provider's time, how many times ours that is, and its memory."""
    columns = ("op", "mode", "dtype", "threads", "atoms", "provider", "ms", "times ours", "MiB")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (op, mode, dtype, threads), series in latest(rows).items():
        for atoms in sorted({n for points in series.values() for n in points}):
            ours = series.get("scfmlip", {}).get(atoms)
            for provider, points in series.items():
                if atoms not in points:
                    continue
                row = points[atoms]
                ratio = f"{float(row['median_ms']) / float(ours['median_ms']):.2f}" if ours else ""
                lines.append(
                    f"| {op} | {mode} | {dtype} | {threads} | {atoms} | {provider} | {row['median_ms']} | "
                    f"{ratio} | {row['peak_mib']} |"
                )
    return "\n".join(lines)


def figure(title: str, series: Series, path: Path) -> None:
    """Time and memory against atoms, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for provider, points in series.items():
        name = provider.removesuffix(" (graph)")
        style = {
            "color": COLORS.get(name, "black"),
            "linestyle": "-" if name == provider else "--",
            "marker": "o",
            "markersize": 4,
            "label": provider,
        }
        atoms = sorted(points)
        for axis, column in zip(axes, ("median_ms", "peak_mib"), strict=True):
            xy = [(n, float(points[n][column])) for n in atoms if points[n][column] not in ("", "0")]
            if xy:
                axis.plot(*zip(*xy, strict=True), **style)
        low, high = ([float(points[n][q]) for n in atoms] for q in ("p20_ms", "p80_ms"))
        axes[0].fill_between(atoms, low, high, color=style["color"], alpha=0.2, linewidth=0)
    for axis, label in zip(axes, ("time of one call, ms", "peak extra memory, MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="atoms", ylabel=label)
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].legend(fontsize=8)
    canvas.suptitle(title, fontsize=10)
    canvas.savefig(path, dpi=130)
    pyplot.close(canvas)


def main() -> None:
    """Draw every op that has more than one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a results file")
    parser.add_argument("--out", type=Path, help="folder of the figures (bench/results/plots)")
    parser.add_argument("--table", action="store_true", help="print a table instead")
    options = parser.parse_args()
    rows = read(options.file)
    if options.table:
        print(table(rows))
        return
    out = options.out or RESULTS / "plots"
    out.mkdir(parents=True, exist_ok=True)
    for (op, mode, dtype, threads), series in latest(rows).items():
        if len({n for points in series.values() for n in points}) < 2:
            continue
        device = rows[-1]["device"]
        title = f"{op}, {mode.replace('_', ' + ')}, {dtype}, {device}" + (
            f", {threads} threads" if not rows[-1]["driver"] else ""
        )
        path = out / f"{options.file.stem}-{op.replace(' ', '-')}-{mode}-{dtype}-{threads}.png"
        figure(title, series, path)
        print(path.name)


if __name__ == "__main__":
    main()
