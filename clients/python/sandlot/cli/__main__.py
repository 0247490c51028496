"""`python -m sandlot.cli` is `sandlot`."""

from sandlot.cli import main

main()
