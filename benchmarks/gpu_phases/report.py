"""From the JSON files of the phases to Markdown. What is wrong comes first."""

from pathlib import Path
from typing import Any

from .journal import read
from .plan import PHASES

__all__ = [
    "OTHERS",
    "complaints",
    "counter_lines",
    "floors",
    "left_out",
    "load",
    "machine_lines",
    "markdown",
    "microseconds",
    "operator_groups",
    "profiles",
    "speed",
    "test_lines",
    "three_digits",
    "timed_models",
    "yardstick",
]

Results = dict[str, dict]

# TensorRT engines at batch 1, as the original project published them (for another card).
_PUBLISHED = "T 156, S 129, B 116, L 56, XL 47 images/s"
OTHERS = ("triton", "torchvision", "grid_sample", "compiled gather")


def load(folder: Path) -> Results:
    """Return the data of every phase that has written a file."""
    found = {name: read(folder, name) for name in PHASES}
    return {name: data for name, data in found.items() if data}


def complaints(results: Results) -> list[str]:
    """What computes something wrong, then what could not be run; one line each."""
    wrong, failed = [], []
    for phase, data in results.items():
        if "error" in data:
            failed.append(f"{phase}: {data['error']}")
        if data.get("ended", "complete") != "complete":
            failed.append(f"{phase}: {data['ended']}")
        for name, row in data["rows"].items():
            lines = str(row.get("error", "")).strip().splitlines() or [""]
            if row["status"] == "wrong":
                wrong.append(f"WRONG {phase}, {name}: {lines[-1][:300]}")
            elif row["status"] in ("failed", "started"):
                failed.append(f"{phase}, {name}: {lines[-1][:300]}")
        for failure in data["rows"].get("pytest", {}).get("failures", []):
            last = (failure["text"].strip().splitlines() or [""])[-1]
            wrong.append(f"WRONG test {failure['test']}: {last[:200]}")
    return wrong + failed


def left_out(results: Results) -> list[str]:
    """How many rows of each phase had no time left."""
    counts = {
        phase: [row["status"] for row in data["rows"].values()].count("left out") for phase, data in results.items()
    }
    return [f"{phase}: {count} rows were left out for lack of time" for phase, count in counts.items() if count]


def _ceilings(results: Results) -> tuple[float | None, float | None]:
    """Bytes per second of the memory, instructions of a warp per second of all schedulers at the highest clock."""
    rows = results.get("build", {}).get("rows", {})
    bandwidth = rows.get("ceilings", {}).get("copy_bytes_per_s")
    try:
        clock = float(results["build"]["nvidia_smi"]["clocks.max.sm"]) * 1e6
        return bandwidth, 4 * rows["card"]["processors"] * clock
    except (KeyError, ValueError):
        return bandwidth, None


def floors(results: Results, row: dict, direction: str) -> dict[str, float]:
    """Milliseconds that memory and instruction issue need at least: `dram`, and for the forward pass `issue`.

    A static count says how long the forward kernel's unrolled code takes; the backward pass has a kernel with loops.
    """
    bandwidth, rate = _ceilings(results)
    found = {}
    if bandwidth:
        found["dram"] = 1e3 * row["bytes"][direction] / bandwidth
    counts = [
        kernel
        for kernel in results.get("operator", {}).get("instructions", [])
        if (kernel["direction"], kernel["dtype"], kernel["points"]) == (direction, row["dtype"], 9)
        and kernel["logits"] == row["logits"]
        and row["depth"] % kernel["channels"] == 0
    ]
    if counts and rate and direction == "forward":
        batch, height, width, channels = row["shape"]
        elements = batch * height * width * channels
        per_element = max(counts, key=lambda kernel: kernel["channels"])["per_element"]
        found["issue"] = 1e3 * elements * per_element / 32 / rate
    return found


def operator_groups(results: Results) -> dict[tuple, dict[str, dict]]:
    """Rows of the operator by case, then by method."""
    groups: dict[tuple, dict[str, dict]] = {}
    for row in results.get("operator", {}).get("rows", {}).values():
        if "shape" in row:
            case = (row["model"], row["stage"], row["batch"], row["dtype"], row["spread"], row["logits"])
            groups.setdefault(case, {})[row["method"]] = row
    return groups


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def microseconds(time: dict | None, spread: bool = False) -> str:
    """A time in microseconds, with its first and last decile if asked; nothing if there is none."""
    if not time:
        return ""
    text = three_digits(1e3 * time["ms"])
    return f"{text} ({three_digits(1e3 * time['low'])} to {three_digits(1e3 * time['high'])})" if spread else text


def three_digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def operator_table(results: Results, direction: str) -> list[str]:
    """Microseconds of one direction, and how many times the floors and ours the others are."""
    rows = []
    for case, methods in operator_groups(results).items():
        own = methods.get("kernel", {})
        cells = [f"{case[0]} {case[1]}", "x".join(map(str, next(iter(methods.values()))["shape"])), case[3]]
        cells += [f"{case[4]:g}", "logits" if case[5] else "weights"]
        time = own.get(direction)
        cells.append("**wrong**" if own.get("status") == "wrong" else microseconds(time, spread=True))
        least = floors(results, own, direction) if time else {}
        cells += [f"{time['ms'] / least[name]:.2f}" if name in least else "" for name in ("dram", "issue")]
        for name in OTHERS:
            other = methods.get(name, {})
            text = "wrong" if other.get("status") == "wrong" else microseconds(other.get(direction))
            if time and other.get(direction):
                text += f" ({other[direction]['ms'] / time['ms']:.1f}x)"
            cells.append(text)
        rows.append(cells)
    head = ["stage", "input", "type", "offsets", "mask", "kernel, µs (10% to 90%)", "times DRAM floor"]
    return _table([*head, "times issue floor", *OTHERS], rows)


def yardstick(results: Results, row: dict) -> dict | None:
    """The row of ConvNeXt that a row is to be compared with: the same size, task, precision, batch and mode."""
    for other in results["model"]["rows"].values():
        same = all(other.get(key) == row.get(key) for key in ("task", "precision", "batch", "mode"))
        if same and other.get("model") == "ConvNeXt-" + row["model"].split("-")[1] and "time" in other:
            return other
    return None


def timed_models(results: Results) -> list[dict]:
    """Rows of networks that were timed, in the order in which they were run."""
    return [row for row in results.get("model", {}).get("rows", {}).values() if "time" in row]


def speed(row: dict) -> float:
    """Images per second of a network's row."""
    return row["batch"] / row["time"]["ms"] * 1e3


def model_table(results: Results) -> list[str]:
    """Images per second of every row, and beside ConvNeXt."""
    rows = []
    order = ("task", "precision", "batch", "mode")
    for row in sorted(timed_models(results), key=lambda row: [row[key] for key in order]):
        other = yardstick(results, row)
        time = row["time"]
        rows.append(
            [
                row["model"] + (", optimised" if row["optimized"] else ""),
                *(row["task"], row["precision"], row["batch"], row["mode"], row["image"]),
                f"{time['ms']:.2f} ({time['low']:.2f} to {time['high']:.2f})",
                three_digits(speed(row)),
                f"{speed(row) / speed(other):.2f}" if other else "",
                f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "",
                f"{row['error_of_logits']:.0e}" if "error_of_logits" in row else "",
            ]
        )
    head = ["network", "task", "precision", "batch", "mode", "pixels", "ms (10% to 90%)", "images/s"]
    return _table([*head, "of ConvNeXt's", "peak GiB", "error"], rows)


def profiles(results: Results) -> list[dict]:
    """Rows with the kernels of a network."""
    return [row for row in results.get("model", {}).get("rows", {}).values() if row.get("kernels")]


def _profile_table(row: dict, count: int) -> list[str]:
    total = row["total_us"] or 1
    cells = [[f"{k['us']:.0f}", f"{100 * k['us'] / total:.1f}", k["count"], f"`{k['name']}`"] for k in row["kernels"]]
    return _table(["µs", "%", "launches", "kernel"], cells[:count])


_COUNTERS = {
    "duration": "gpu__time_duration.sum",
    "DRAM %": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "L1 %": "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "L2 %": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue slots busy %": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "issue active %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "achieved occupancy %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "warp instructions": "smsp__inst_executed.sum",
    "L2 sectors red": "lts__t_sectors_op_red.sum",
    "L2 sectors atom": "lts__t_sectors_op_atom.sum",
}


def counter_lines(kernel: dict) -> list[str]:
    """Lines about one kernel: the counters above, then the five largest reasons for which warps wait."""
    by_name = {label.split(" [")[0]: (label, value) for label, value in kernel.items()}
    lines = []
    for title, name in _COUNTERS.items():
        if name in by_name:
            label, value = by_name[name]
            unit = label.partition(" [")[2].rstrip("]")
            number = f"{value:,.1f}" if isinstance(value, float) else value
            lines.append(f"{title}: {number} {unit if unit != '%' else ''}".rstrip())
    stalls = [
        (value, name.removeprefix("smsp__average_warps_issue_stalled_").removesuffix("_per_issue_active.ratio"))
        for name, (_, value) in by_name.items()
        if name.startswith("smsp__average_warps_issue_stalled_") and name.endswith("_per_issue_active.ratio")
        and isinstance(value, float)
    ]  # fmt: skip
    if stalls:
        worst = sorted(stalls, reverse=True)[:5]
        lines.append("warps waiting per issue: " + ", ".join(f"{name} {value:.2f}" for value, name in worst))
    return lines


def machine_lines(results: Results) -> list[str]:
    """Card, versions, measured ceilings, how the library was built."""
    data = results.get("build")
    if not data:
        return []
    rows = data["rows"]
    smi, ceilings = data.get("nvidia_smi", {}), rows.get("ceilings", {})
    lines = [
        f"{data['date']}; {smi.get('name', 'no GPU')}, driver {smi.get('driver_version', '?')}, torch {data['torch']} "
        f"(CUDA {data['torch_cuda']}), Triton {data.get('triton')}, {data['nvcc']}."
    ]
    if "copy_bytes_per_s" in ceilings:
        copies, products = ceilings["copy_bytes_per_s"] / 1e12, ceilings["bf16_flop_per_s"] / 1e12
        loaded = ceilings.get("clocks_under_load", {}).get("clocks.sm", "?")
        lines.append(
            f"Measured: copies {copies:.2f} TB/s (read and written), bf16 products {products:.0f} TFLOP/s; "
            f"{rows.get('card', {}).get('processors', '?')} processors; SM clock {smi.get('clocks.max.sm', '?')} MHz "
            f"at most, {loaded} under load."
        )
    library = rows.get("library", {})
    if "load_seconds" in library:
        state = library.get("error") or f"backend `{library['chosen']}`"
        lines.append(f"Library built and loaded in {library['load_seconds']} s: {state}.")
    return [*lines, ""]


def test_lines(results: Results) -> list[str]:
    """Results of pytest and of compute-sanitizer."""
    lines = []
    if row := results.get("tests", {}).get("rows", {}).get("pytest"):
        counts = ", ".join(f"{count} {outcome}" for outcome, count in row.get("counts", {}).items()) or "none ran"
        lines.append(f"Tests (`pytest -m gpu`): {counts}, in {row.get('wall', '?')} s.")
    for name, row in results.get("sanitizer", {}).get("rows", {}).items():
        found = f"{row.get('runs', 0)} calls" + (f", {row['errors']} errors" if "errors" in row else "")
        lines.append(f"compute-sanitizer, {name}: {row['status']}, {found}.")
    return [*lines, ""] if lines else []


def markdown(results: Results) -> str:
    """Return the whole report."""
    lines = ["# Results on a GPU", ""]
    if found := complaints(results) + left_out(results):
        lines += ["## Wrong or not run", "", *(f"- {line}" for line in found), ""]
    lines += [*machine_lines(results), *test_lines(results)]
    if operator_groups(results):
        lines += [
            "## The operator",
            "",
            "3x3 window. Offsets: standard deviation in pixels. Floors: every byte in and out once at the measured "
            "bandwidth; the kernel's instructions, one per scheduler and clock. Batch 1 in a CUDA graph, inputs in the "
            "cache; larger batches on rotating inputs. In brackets: how many times our kernel's time.",
            "",
        ]
        for direction in ("forward", "backward"):
            lines += [f"### {direction.capitalize()}", "", *operator_table(results, direction)]
    if timed_models(results):
        lines += ["## Networks", "", *model_table(results)]
        lines += [f"TensorRT at batch 1, published by the original project (another card): {_PUBLISHED}.", ""]
    for row in profiles(results):
        title = f"### Kernels: {row['model']}, {row['precision']}, batch {row['batch']}"
        lines += [
            title,
            "",
            f"{row['launches']} launches, {row['total_us'] / 1e3:.2f} ms.",
            "",
            *_profile_table(row, 25),
        ]
    for name, row in results.get("ncu", {}).get("rows", {}).items():
        for kernel in row.get("kernels", []):
            lines += [f"### Counters, {name}: `{str(kernel.get('Kernel Name'))[:90]}`", ""]
            lines += [*(f"- {line}" for line in counter_lines(kernel)), ""]
    return "\n".join(lines)
