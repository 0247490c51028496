"""`python -m tunnels.gateway`."""

from tunnels.gateway.program import main

main()
