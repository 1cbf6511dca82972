"""Settings that are stricter than those of users: 8 simulated devices, no implicit promotion, warnings are errors."""

import os
import pathlib

# With full optimization, tests would spend most of their time in LLVM. `make slow` sets XLA_FLAGS to the empty string,
# so that its programs are compiled as those of users.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
# Number of XLA's threads. By default there is one per device, and two independent collectives that devices reach in a
# different order deadlock (seen on busy machines, as an abort after 40 s).
os.environ.setdefault("NPROC", "32")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
NEIGHBOR_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data next to the checkout. Tests that need it are skipped if it is missing."""
    if not NEIGHBOR_DATA.is_dir():
        pytest.skip("no real data beside this checkout")
    return NEIGHBOR_DATA


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
def real_llama4(real_data):
    """The public tokenizer, if its files are present."""
    from maverick_jax.text import load_tokenizer

    return load_tokenizer(real_data / "tokenizer" / "llama4_tokenizer.model")


@pytest.fixture(scope="session")
def real_llama4_folder(real_llama4, tmp_path_factory) -> pathlib.Path:
    """The Hugging Face form of the public tokenizer, for a base model."""
    from maverick_jax.huggingface.tokenizer_files import write_hugging_face

    folder = tmp_path_factory.mktemp("real_llama4")
    write_hugging_face(real_llama4, folder)
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
