"""Times scipy.optimize.linear_sum_assignment on the matrices match_bench left in a folder, and prints the ratios."""

import json
import pathlib
import sys
import time


def main():
    folder = pathlib.Path(sys.argv[1])
    results = json.loads((folder / "assignment.json").read_text())
    try:
        import numpy
        import scipy
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        print("\nSciPy is not installed for this Python: no comparison (see WEIGHTSMITH_BENCH_PYTHON).")
        return
    print(f"\nassignment against SciPy {scipy.__version__} (float32 as given | float64), best of five")
    print(f"{'':22} {'n':>6} {'ours':>12} {'float32':>12} {'ratio':>7} {'float64':>12} {'ratio':>7}  same value")
    for result in results:
        n = result["n"]
        narrow = numpy.fromfile(folder / result["file"], dtype=numpy.float32).reshape(n, n)
        times = []
        for matrix in (narrow, narrow.astype(numpy.float64)):
            best = float("inf")
            for _ in range(5):
                start = time.perf_counter()
                rows, columns = linear_sum_assignment(matrix, maximize=True)
                best = min(best, time.perf_counter() - start)
            times.append(best * 1e3)
        value = matrix[rows, columns].sum()
        same = abs(value - result["value"]) <= 1e-11 * n * max(1.0, abs(matrix).max())
        print(f"{result['name']:22} {n:6} {result['ms']:9.2f} ms {times[0]:9.2f} ms {times[0] / result['ms']:6.1f}x"
              f" {times[1]:9.2f} ms {times[1] / result['ms']:6.1f}x  {'yes' if same else 'NO'}")


main()
