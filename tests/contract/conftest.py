"""What several suites of this folder are run over."""

from collections.abc import Generator

import pytest

from guest_kit import RawGuest, native, sandboxed


@pytest.fixture(scope="module", params=["native", "runsc"])
def raw_guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[RawGuest]:
    opened = native(tmp_path_factory.mktemp("guest")) if request.param == "native" else sandboxed()
    with opened as made:
        made.call("POST", "processes", made.spec(["true"])).refused(409, "sandbox_not_ready")
        made.init(user="nosuchuser").refused(422, "user_not_found")
        made.init(cwd="/no/such/place").refused(422, "cwd_not_found")
        assert made.call("GET", "health").json["initialized"] is False
        assert made.init().status == 200
        yield made
