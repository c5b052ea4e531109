"""The end of a run as short text: of what is printed there, only so much may be kept."""

from .report import (
    OTHERS,
    Results,
    complaints,
    counter_lines,
    floors,
    left_out,
    machine_lines,
    microseconds,
    operator_groups,
    profiles,
    speed,
    test_lines,
    three_digits,
    timed_models,
    yardstick,
)

__all__ = ["brief"]

_BRIEF = 11_500  # characters


def brief(results: Results) -> str:
    """Return the end of a run in few characters: what is wrong, then one line for each result."""
    lines = ["", "=" * 20 + " RESULTS"]
    lines += [line[:260] for line in complaints(results)[:25]]
    lines += [line for line in left_out(results) + machine_lines(results) + test_lines(results) if line]
    for name, row in results.get("ncu", {}).get("rows", {}).items():
        for kernel in row.get("kernels", []):
            lines.append(f"ncu {name} {str(kernel.get('Kernel Name'))[:30]}: " + "; ".join(counter_lines(kernel)))
    for row in profiles(results):
        lines.append(f"{row['model']} {row['precision']}: {row['launches']} launches, {row['total_us'] / 1e3:.2f} ms")
        count = 10 if row["model"].startswith("InternImage") else 0
        lines += [f"  {k['us']:8.0f} us {k['count']:4d} {k['name'][:70]}" for k in row["kernels"][:count]]
    for row in timed_models(results):
        other = yardstick(results, row)
        beside = f" {speed(row) / speed(other):.2f} of ConvNeXt" if other and other is not row else ""
        peak = f" {row['peak_bytes'] / 2**30:.1f} GiB" if "peak_bytes" in row else ""
        name = row["model"] + (" opt" if row["optimized"] else "")
        lines.append(
            f"{name} {row['task'][:5]} {row['precision']} N={row['batch']} {row['mode']}: "
            f"{row['time']['ms']:.2f} ms {three_digits(speed(row))}/s{peak}{beside}"
        )
    for case, methods in operator_groups(results).items():
        own = methods.get("kernel", {})
        line = f"{case[0]}{case[1]} N={case[2]} {case[3]} s{case[4]:g} {'L' if case[5] else 'W'}"
        for direction in ("forward", "backward"):
            if time := own.get(direction):
                least = floors(results, own, direction)
                ratios = "/".join(f"{time['ms'] / least[name]:.1f}" for name in ("dram", "issue") if name in least)
                line += f" | {direction[:3]} {microseconds(time)} us x{ratios}"
            others = [
                f"{name[:4]} {microseconds(methods[name][direction])}"
                for name in OTHERS
                if methods.get(name, {}).get(direction)
            ]
            line += f" ({', '.join(others)})" if others else ""
        if own.get("status") == "wrong":
            line += " | WRONG"
        lines.append(line)
    text = "\n".join(lines)
    return text if len(text) <= _BRIEF else text[: _BRIEF - 40] + "\n... (the rest: --report)"
