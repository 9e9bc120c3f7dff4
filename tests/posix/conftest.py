"""Runs every test of this directory in each place, in a process of its own; some places only with ``-m slow``.

Only a test's own function touches the place: fixtures run in the process of the tests, which a hung mount must not
hold.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.posix import processes
from tests.posix.places import KINDS, Place, Places


@pytest.fixture(scope="session")
def _places() -> Iterator[Places]:
    places = Places()
    try:
        yield places
    finally:
        places.close()


NAMES_ALONE = (
    "test_attributes", "test_directories", "test_links", "test_locks", "test_names", "test_permissions",
    "test_rename_directories", "test_special", "test_xattrs",
)  # fmt: skip
"""Modules about calls that both kinds of mounts answer by the same code: no bytes of files are in them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test its places. Of those, ext4 is there to test the tests."""
    if "place" in metafunc.fixturenames:
        often = KINDS[1:2] if metafunc.module.__name__.rpartition(".")[2] in NAMES_ALONE else KINDS[1:]
        places = [kind if kind in often else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
        metafunc.parametrize("place", places, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, _places: Places) -> Iterator[Place]:
    """A directory of the test's own in each kind of place."""
    kind = request.param
    yield _places.fresh(kind, request.node.name)
    outcome = request.node.stash.get(_OUTCOME, None)
    if isinstance(outcome, processes.TimedOut):
        _places.free(kind)
    unexpected = _places.new_log_lines(kind)
    message = "unexpected log lines of the daemon:\n" + "\n".join(unexpected[:20])
    if unexpected and outcome is None:
        pytest.fail(message, pytrace=False)
    elif unexpected:
        print(message)  # pytest shows it with the failure


_OUTCOME = pytest.StashKey[BaseException | None]()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Make the test's place and call the test there, in a process with a time limit."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    place = arguments.get("place")
    if not isinstance(place, Place):
        return None

    def call() -> None:
        place.path.mkdir()
        place.path.chmod(0o777)
        pyfuncitem.obj(**arguments)

    try:
        processes.run_test(call, processes.LIMIT_S)
    except BaseException as exc:
        pyfuncitem.stash[_OUTCOME] = exc
        raise
    return True
