"""What the host says about its disk: also of files that have no name any more."""

import os
import tempfile
from pathlib import Path

from sandboxd.manager.host import LinuxHost

MIB = 1 << 20


def test_what_was_written_counts_without_a_name(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    for name in ("sbxone", "sbxtwo"):
        (upper / name).mkdir(parents=True)
    with (
        tempfile.TemporaryFile(dir=upper / "sbxone") as large,
        tempfile.TemporaryFile(dir=upper / "sbxtwo") as small,
        tempfile.TemporaryFile(dir=tmp_path) as other,
    ):
        for file, size in ((large, 3 * MIB), (small, MIB), (other, 5 * MIB)):
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
        again = os.dup(large.fileno())  # the same file counts once
        written = LinuxHost(upper).written_mib()
        os.close(again)
    assert written == {"sbxone": 3, "sbxtwo": 1}
    assert LinuxHost(upper).written_mib() == {}
