"""Runs the suite, prints each test as it ends, writes a JSON report, exits 0 only if all passed."""

import argparse
import json
import sys
import time
import unittest
from pathlib import Path


class Recorder(unittest.TextTestResult):
    """Notes outcome and duration of each test beside what is printed."""

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.started = time.perf_counter()

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        bad = {id(one) for one, _ in self.failures + self.errors}
        bad |= {id(getattr(one, "test_case", one)) for one, _ in self.failures + self.errors}
        rows.append(
            {
                "name": test.id(),
                "outcome": "failed" if id(test) in bad else "passed",
                "seconds": round(time.perf_counter() - self.started, 6),
            }
        )


rows: list[dict[str, object]] = []


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    report = parser.parse_args().report
    suite = unittest.defaultTestLoader.discover("tests", top_level_dir=".")
    result = unittest.TextTestRunner(sys.stdout, verbosity=2, resultclass=Recorder).run(suite)
    failed = sum(row["outcome"] == "failed" for row in rows)
    report.write_text(json.dumps({"tests": len(rows), "failed": failed, "cases": rows}, indent=1))
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
