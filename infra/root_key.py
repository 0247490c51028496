"""`python -m infra.root_key [--keep-old]`: issue a new root key, as the api's user. Prints how many it revoked."""

import os
import sys
import time

from sqlalchemy.exc import OperationalError

from api.config import Settings
from api.services.root_key import NoProjectError, issue

if __name__ == "__main__":
    try:
        print(
            issue(
                Settings(),
                keep_old="--keep-old" in sys.argv[1:],
                now_us=time.time_ns() // 1000,
                random_bytes=os.urandom,
            )
        )
    except (NoProjectError, OperationalError):
        sys.exit("the database cannot be used; the api's first start makes it, and the key")
