"""`python -m sandboxd`: the node agent; `python -m sandboxd down`: the end of all its sandboxes."""

import sys

from sandboxd.app.run import down, main

if sys.argv[1:] == ["down"]:
    down()
elif sys.argv[1:]:
    sys.exit("usage: python -m sandboxd [down]")
else:
    main()
