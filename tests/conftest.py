"""Settings that are stricter than those of users: 8 simulated devices, no implicit promotion, warnings are errors."""

import gc
import importlib.util
import lzma
import os
import pathlib

from tests.helpers.compilation import QUICK_FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)  # set and empty, as `make slow` has it: compiled as users' programs are
# XLA's threads: by default one a device, and two collectives that do not follow from each other, met in another order
# by one device, then wait for ever (an abort after 40 s, seen on busy machines).
os.environ.setdefault("NPROC", "32")

import hypothesis
import jax
import pytest

gc.set_threshold(50_000, 20, 100)  # traced programs are many objects: by default a twentieth of the time is collection

pytest_plugins = ["tests.helpers.memory"]

# Of all property tests. A deadline, or a limit on how long examples take to make, fails on a busy machine alone. CI
# draws the same examples each time: a change fails for what it did.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
LEAST_SECONDS = 0.5
"""Programs that took so long to compile are kept."""

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PUBLIC_RANKS = REPOSITORY.parent / "shared" / "data" / "tokenizer" / "llama4_tokenizer.model"


def pytest_runtest_setup(item):
    if item.get_closest_marker("oracles") and not importlib.util.find_spec("torch"):
        pytest.skip("compares with PyTorch, which is not installed: the Makefile says how")
    elsewhere = item.get_closest_marker("compilers") is not None
    # a program for devices that are not attached cannot be read again
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf") if elsewhere else LEAST_SECONDS)
    if elsewhere and not all(map(importlib.util.find_spec, ("jax_plugins", "libtpu"))):
        pytest.skip("compiles for other devices, and the extra `compilers` is not installed: `make compiled`")


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> pathlib.Path:
    """The folder `tests/assets`, unpacked."""
    folder = tmp_path_factory.mktemp("assets")
    for path in (REPOSITORY / "tests" / "assets").glob("*.json*"):
        read = lzma.decompress if path.suffix == ".xz" else bytes
        (folder / path.name.removesuffix(".xz")).write_bytes(read(path.read_bytes()))
    return folder


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> pathlib.Path:
    """A generated rank file of Llama 4's size."""
    from tests.helpers.rank_file import write_rank_file

    return write_rank_file(tmp_path_factory.mktemp("ranks") / "tokenizer.model")


@pytest.fixture(scope="session")
def small_llama4(ranks):
    """A tokenizer with Llama 4's control tokens and generated ranks."""
    from maverick_jax.text import load_tokenizer

    return load_tokenizer(ranks)


@pytest.fixture(scope="session")
def public_ranks() -> pathlib.Path:
    """Llama 4's own rank file, which its license keeps out of this repository."""
    if not PUBLIC_RANKS.is_file():
        pytest.skip("the public Llama 4 tokenizer is not beside this checkout")
    return PUBLIC_RANKS


@pytest.fixture(scope="session")
def real_llama4(public_ranks):
    from maverick_jax.text import load_tokenizer

    return load_tokenizer(public_ranks)


@pytest.fixture(scope="session", params=["ranks", "public_ranks"])
def any_ranks(request) -> pathlib.Path:
    """Nobody's and, where they are, the public ones."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def any_llama4(any_ranks):
    from maverick_jax.text import load_tokenizer

    return load_tokenizer(any_ranks)


@pytest.fixture(scope="session")
def any_llama4_folder(any_llama4, tmp_path_factory) -> pathlib.Path:
    """Its Hugging Face form, of a base model."""
    from maverick_jax.huggingface.tokenizer_files import write_hugging_face

    folder = tmp_path_factory.mktemp("any_llama4")
    write_hugging_face(any_llama4, folder)
    return folder


@pytest.fixture
def mesh_of():
    """`mesh_of(expert=2, tensor=2)`: a context with that mesh over the first devices."""
    import math

    from maverick_jax.sharding import make_mesh

    def make(**sizes):
        return jax.set_mesh(make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]))

    return make


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The folder of the session's small real runs."""
    from tests.helpers.small_run import Place

    return Place.make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def whole_run(runs):
    """The small run, uninterrupted, in one process on one device. Tests must not change it."""
    runs.train(runs.root / "whole", JAX_LOG_COMPILES=1)
    return runs.root / "whole"
