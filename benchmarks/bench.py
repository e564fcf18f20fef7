"""`make bench`: every figure as a ratio to a named peer, measured in turn in one process after equality is asserted.

A row is a dict: what, against (the peer), goal (a ratio, or None), ours and peer (callables that do the work once),
check (a callable that asserts that both give the same), and perhaps scale (how much more work the whole is than what
`peer` does).
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # every row is one thread against one thread, unless it says otherwise
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np

from steel_seg.files import versions, write_json


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(row, seconds):
    "Median time of each side and the ratio: rounds in turn, the first not counted."
    if "size" in row:
        return dict(
            what=row["what"], against=row["against"], goal=row["goal"], ratio=row["size"](), ours_ms=None, peer_ms=None
        )
    if "found" in row:  # in a browser, both in turn, in ms
        ours, peer = row["found"]()
        return dict(
            what=row["what"],
            against=row["against"],
            goal=row["goal"],
            at_most=row.get("at_most", False),
            ratio=peer / ours,
            ours_ms=ours,
            peer_ms=peer,
        )
    row["check"]()
    ours, peer, end = [], [], time.perf_counter() + seconds
    timed(row["ours"]), timed(row["peer"])
    while len(ours) < 3 or (time.perf_counter() < end and len(ours) < 200):
        # A quick side is repeated within a round, so that the clock is not what is measured.
        for times, f in ((ours, row["ours"]), (peer, row["peer"]))[:: 1 if len(ours) % 2 else -1]:
            times.append(min(timed(f) for _ in range(1 if times and times[-1] > 0.02 else 3)))
    ours, peer = np.median(ours), np.median(peer) * row.get("scale", 1)
    return dict(
        what=row["what"],
        against=row["against"],
        goal=row.get("goal"),
        goal_ms=row.get("goal_ms"),
        ratio=peer / ours,
        ours_ms=1e3 * ours,
        peer_ms=1e3 * peer,
        **row.get("more", {}),
    )


def line(r):
    at_most, goal_ms = r.get("at_most", False), r.get("goal_ms")
    shown = f"{1 / r['ratio']:.2f}x its time" if at_most else f"{r['ratio']:.3g}x"
    if goal_ms:
        goal, met = f"< {goal_ms} ms", r["ours_ms"] < goal_ms
    elif r["goal"] is None:
        goal, met = "", None
    elif at_most:
        goal, met = f"<= {r['goal']:g}", 1 / r["ratio"] <= r["goal"]
    else:
        goal, met = f">= {r['goal']:g}", r["ratio"] >= r["goal"]

    def ms(x):
        return "" if x is None else f"{x:.4f}"

    return (
        f"{r['what']:62} {shown:>14} {goal:>8} {'' if met is None else 'yes' if met else 'NO':>4} "
        f"{ms(r['ours_ms']):>11} {ms(r['peer_ms']):>11}  {r['against']}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="words; rows whose text holds one of them are measured")
    parser.add_argument("--out", default="benchmarks/results.json")
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    args = parser.parse_args()
    import blends
    import counts
    import latency  # lets `live` be found
    import live
    import reading
    import rle
    import training

    rows = [row for module in (rle, reading, counts, blends, training, latency) for row in module.rows()]
    rows = [
        row for row in rows if not args.only or any(word in f"{row['what']} {row['against']}" for word in args.only)
    ]
    print(f"{'what':62} {'ratio':>14} {'goal':>8} {'met':>4} {'ours, ms':>11} {'peer, ms':>11}  against")
    found = []
    for row in rows:
        try:
            found.append(measure(row, args.seconds))
        except live.NoBrowser as e:
            print(f"{row['what']:62} not measured: {e}")
            continue
        print(line(found[-1]), flush=True)
    machine = dict(processor=platform.processor() or platform.machine(), cores=os.cpu_count(), load=os.getloadavg())
    print(f"written to {write_json(args.out, dict(rows=found, machine=machine, versions=versions()))}")


if __name__ == "__main__":
    main()
