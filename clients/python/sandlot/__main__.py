"""`python -m sandlot` is `sandlot`."""

from sandlot.cli import main

main()
