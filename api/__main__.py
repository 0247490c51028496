"""`python -m api`."""

import gc

from api.app import main

# What start-up has made stays: looking through it again and again for garbage would cost every request.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)
main()
