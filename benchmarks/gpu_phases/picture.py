"""The results as a picture. The only file that needs matplotlib."""

from pathlib import Path

from .report import Results, floors, operator_groups, speed, three_digits, timed_models

__all__ = ["plot"]


def plot(results: Results, path: Path) -> None:
    """Draw times of the operator over its larger floor, and images per second of the networks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = []
    for case, methods in operator_groups(results).items():
        own = methods.get("kernel", {})
        for direction in ("forward", "backward"):
            least = floors(results, own, direction) if own.get(direction) else {}
            if case[2] > 1 and case[4] == 1 and case[5] and least:
                name = f"{case[0]} {case[1]}, {case[3]}, {direction}"
                bars.append((name, own[direction]["ms"], max(least.values()), methods.get("triton", {}).get(direction)))
    speeds = [row for row in timed_models(results) if row["batch"] == 64 and row["mode"] == "eager"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 1.5 + 0.26 * max(len(bars), len(speeds), 6)))
    places = range(len(bars))
    left.barh([p - 0.2 for p in places], [1e3 * bar[1] for bar in bars], 0.4, color="tab:blue", label="kernel")
    left.barh([p + 0.2 for p in places], [1e3 * bar[2] for bar in bars], 0.4, color="lightgray", label="larger floor")
    others = [(p, 1e3 * bar[3]["ms"]) for p, bar in zip(places, bars) if bar[3]]
    left.scatter(
        [x for _, x in others], [p for p, _ in others], marker="|", color="tab:orange", label="Triton", zorder=3
    )
    left.set_yticks(list(places), [bar[0] for bar in bars], fontsize=8)
    left.set_xlabel("µs, batch 64, offsets N(0, 1), on logits")
    left.invert_yaxis()
    left.legend(loc="lower right")
    names = [f"{r['model']}{', optimised' if r['optimized'] else ''}, {r['task']}, {r['precision']}" for r in speeds]
    colors = ["tab:blue" if row["model"].startswith("InternImage") else "lightgray" for row in speeds]
    right.barh(names, [speed(row) for row in speeds], color=colors)
    right.bar_label(right.containers[0], [three_digits(speed(row)) for row in speeds], padding=3, fontsize=8)
    right.tick_params(axis="y", labelsize=8)
    right.set_xlabel("images per second, batch 64, eager")
    right.invert_yaxis()
    right.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
