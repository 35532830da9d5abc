"""`python -m lookalike.cli`: the command line where no `lookalike` script is on PATH. Knows `app` only."""

from lookalike.cli.app import main

main()
