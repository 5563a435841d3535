"""Programs that take turns on one machine: what makes timings of different programs comparable.

Each program runs in a process of its own, says when it is ready, and evaluates for a while whenever it
is told to; the others wait meanwhile. Needs nothing but Python, so that a peer in another environment can
use it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def serve(step: Callable[[int], object], facts: dict[str, Any], warmup: int = 5) -> None:
    """In the program: step whenever told to, until there is nothing more to do.

    Args:
        step: What is timed; gets the number of the call.
        facts: What is known of the program; printed once it is ready.
        warmup: Calls before that.
    """
    for call in range(warmup):
        step(call)
    print(json.dumps(facts), flush=True)
    call = warmup
    for line in sys.stdin:
        seconds = float(line)
        wall, cpu = [], []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(wall) < 3:
            started, busy = time.perf_counter(), time.process_time()
            step(call)
            cpu.append(time.process_time() - busy)
            wall.append(time.perf_counter() - started)
            call += 1
        print(json.dumps({"wall": wall, "cpu": cpu, "peak_MB": peak_megabytes()}), flush=True)


def peak_megabytes() -> int | None:
    """Largest memory of this process so far; None where it is not Linux."""
    # The resource module counts the parent's memory before exec, too.
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def take_turns(
    commands: Sequence[Sequence[str]], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """In the benchmark: run programs, each for some seconds in every round.

    Returns:
        For each program its facts with ``cpu_ms`` and ``wall_ms`` (medians over all calls), the spread
        of the rounds' medians (``cpu_ms_range``) and ``peak_MB``; or ``error`` if it did not start.
    """
    rows: list[dict[str, Any]] = []
    running = []
    started = []
    for command in commands:
        # A file, since nobody reads a pipe until the end.
        complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
        )
        started.append((command, process, complaints))
    for command, process, complaints in started:
        facts = _answer(process)
        if facts is not None:
            rows.append(facts)
            running.append((process, facts, []))
        else:
            complaints.seek(0)
            message = complaints.read().strip().splitlines() or ["no message"]
            rows.append({"command": " ".join(command), "error": message[-1]})
    for _ in range(rounds):
        for process, _, results in running:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
            result = _answer(process)
            if result is None:
                raise RuntimeError(f"a program ended in the middle: {' '.join(process.args)}")
            results.append(result)
    for process, row, results in running:
        process.communicate()
        medians = [1e3 * statistics.median(result["cpu"]) for result in results]
        row["cpu_ms_range"] = [round(min(medians), 3), round(max(medians), 3)]
        for kind in ("cpu", "wall"):
            every = [value for result in results for value in result[kind]]
            row[f"{kind}_ms"] = round(1e3 * statistics.median(every), 3)
        row["calls"] = sum(len(result["cpu"]) for result in results)
        row["peak_MB"] = results[-1]["peak_MB"]
    return rows


def _answer(process: "subprocess.Popen[str]") -> dict[str, Any] | None:
    """The next line that is an answer: some programs print other things, too. None at the end."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    return None
