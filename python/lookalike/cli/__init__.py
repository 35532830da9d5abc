"""The command line. `app` puts the commands together and turns errors into exit codes; nothing below knows of it."""

import os

# Read when torch is loaded, so set before any command runs. Threads that spin while they wait starve each other where
# cores are shared: one busy neighbour made adapting ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
