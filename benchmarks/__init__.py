"""Measurements of the product and of its parts: ``python -m benchmarks NAME``, from the root of the repository.

``python -m benchmarks`` lists the names, ``python -m benchmarks NAME --help`` the options of one. Each writes
``NAME.json`` and ``NAME.md`` (tables, and the machine they were measured on) to the folder ``--out``; exit code 1 says
that a check failed.

To add one, write a module with a text whose first line says what is measured, and a function ``run`` whose annotated
parameters are its options (``out`` is one of them) and which returns a ``harness.Report``::

    \"""Seconds that opening a clip takes.\"""

    def run(videos: Videos, out: Out, only: Only = None, rounds: int = 3) -> Report:
        rows = [[clip.stem, seconds(clip, rounds)] for clip in find_clips(videos, only)]
        return Report({"seconds": dict(rows)}, [table(["clip", "seconds"], rows)])

``harness`` holds options, tables and reports, ``data`` clips, scanned people and what is asked of heads.
A benchmark calls the package as users do: it replaces nothing in it and imports nothing private. Smoke tests are in
``tests/benchmarks``.
"""
