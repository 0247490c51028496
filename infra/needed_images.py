"""`python -m infra.needed_images`: what of the images the api's database needs, as the api's user.

Root does not open that database. Prints one JSON object: `digests`, and `unsettled` while images are being made.
"""

import json
import sys

from sqlalchemy.exc import SQLAlchemyError

from api.config import Settings
from api.store.db import make_engine
from api.store.image_roots import roots_any_project

if __name__ == "__main__":
    engine = make_engine(Settings().store_url)
    try:
        with engine.connect() as connection:
            roots = roots_any_project(connection)
    except SQLAlchemyError as error:
        sys.exit(str(error))
    finally:
        engine.dispose()
    print(json.dumps({"digests": sorted(roots.digests), "unsettled": roots.unsettled}))
