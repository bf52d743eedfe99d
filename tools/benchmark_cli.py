"""What the command costs before it does anything: processor time and memory of every `--help`.

    python tools/benchmark_cli.py

Each is a new process, the best of three (other work on the machine only adds). A table goes to stderr; the last line
of stdout is JSON.
"""

import json
import os
import subprocess
import sys


def cost(words: list[str], times: int = 3) -> dict[str, float]:
    """Least processor seconds (user and system) and MiB of `fiber WORDS`."""
    found = []
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-m", "fiber.cli.main", *words], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"fiber {' '.join(words)}: status {process.returncode}")
        found.append((usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    return {"seconds": min(seconds for seconds, _ in found), "mib": min(mib for _, mib in found)}


def main() -> None:
    """Measure and print."""
    from fiber.cli.main import VERBS

    rows = {" ".join(words): cost(words) for words in (["--help"], *([verb.name, "--help"] for verb in VERBS))}
    for name, row in rows.items():
        print(f"fiber {name:24} {row['seconds']:6.3f} s {row['mib']:7.1f} MiB", file=sys.stderr)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
