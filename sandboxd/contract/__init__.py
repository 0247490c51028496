"""What api and sandboxd say to each other; the only part of the node agent that api may import.

Pure: no I/O, no clock, no randomness of its own. History of the contract:

1. sandboxes (ensure, patch, stop), processes, node reports.
"""

CONTRACT_VERSION = 1
