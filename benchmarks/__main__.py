"""``python -m benchmarks``: time everything beside its peers, show a table, write the results."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.environment import with_threads
from benchmarks.results import FRAMEWORKS, RESULTS, failures, load

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="cases whose name contains NAME, such as pyro/vae or sinkhorn; may be repeated",
    )
    parser.add_argument(
        "--update", action="store_true", help="keep the cases that are not run in the results"
    )
    parser.add_argument("--rounds", type=int, default=None, help="rounds (7; 1 with --quick)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every library (1)")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="only this framework's process")
    parser.add_argument("--output", default=None, help="folder of the results")
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="write docs/benchmarks.md from the results; no run",
    )
    parser.add_argument("--show", action="store_true", help="show the table of the results; no run")
    parser.add_argument("--profile", metavar="CASE", help="profile that case's contestants; no run")
    parser.add_argument("--worker", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    if settings.rounds is None:
        settings.rounds = 1 if settings.quick else 7
    if settings.output is None:
        # A trial run must not replace the numbers that the documentation shows.
        partial = settings.quick or (bool(settings.only) and not settings.update)
        settings.output = str(ROOT / "build" / "benchmarks" if partial else RESULTS)
    return settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 if a case failed or its results differ."""
    settings = parse(arguments)
    if settings.worker:
        from benchmarks.worker import run

        run(settings)
        return 0
    if settings.profile:
        from benchmarks.profiles import profile

        profile(settings.profile, quick=settings.quick)
        return 0
    folder = Path(settings.output)
    if settings.write_docs:
        from benchmarks.document import write

        write(load(folder), DOCUMENT)
        print(DOCUMENT)
        return 0
    if not settings.show:
        for framework in [settings.framework] if settings.framework else FRAMEWORKS:
            _spawn(settings, framework)
    from benchmarks.report import show

    reports = load(folder)
    show(reports)
    return 1 if any(failures(report) for report in reports.values()) else 0


def _spawn(settings: argparse.Namespace, framework: str) -> None:
    """Frameworks do not share a process: their thread pools would compete."""
    command = [sys.executable, "-m", "benchmarks", "--worker", framework]
    command += ["--rounds", str(settings.rounds), "--threads", str(settings.threads)]
    command += ["--output", settings.output]
    command += ["--quick"] if settings.quick else []
    command += ["--update"] if settings.update else []
    for name in settings.only:
        command += ["--only", name]
    subprocess.run(command, check=True, cwd=ROOT, env=with_threads(settings.threads))


if __name__ == "__main__":
    sys.exit(main())
