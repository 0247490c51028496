"""An image of a million tiny files: made within its bounds, and every one of them is there for the kernel."""

import io
import subprocess
import tarfile
from pathlib import Path

from image_kit import mounted
from sandboxd.images.layers import build_from_tar
from sandboxd.images.tree import ImportLimits

DIRECTORIES, FILES = 1000, 1000


def million(target: Path) -> Path:
    """Small files with little in them, by a thousand in a directory."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for directory in range(DIRECTORIES):
            row = tarfile.TarInfo(f"d{directory}")
            row.type, row.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(row)
            for number in range(FILES):
                content = b"%d-%d" % (directory, number)
                row = tarfile.TarInfo(f"d{directory}/f{number}")
                row.size = len(content)
                archive.addfile(row, io.BytesIO(content))
    return target


def test_a_million_files_are_an_image(tmp_path: Path) -> None:
    source = million(tmp_path / "million.tar")
    spool = tmp_path / "spool"
    spool.mkdir()
    build_from_tar(source, tmp_path / "image.erofs", spool=spool, limits=ImportLimits())
    with mounted(tmp_path / "image.erofs", tmp_path / "mount") as root:
        counted = subprocess.run(["find", root, "-type", "f", "-printf", "."], capture_output=True, check=True)
        assert len(counted.stdout) == DIRECTORIES * FILES
        for directory, number in ((0, 0), (DIRECTORIES - 1, FILES - 1), (517, 3)):
            assert (root / f"d{directory}/f{number}").read_text() == f"{directory}-{number}"
        assert len(list((root / "d3").iterdir())) == FILES
