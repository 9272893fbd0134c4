"""The cells of a grid are those that Hydra would run, configured as it would."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import resolve
from bnstudy.config.identity import copy_without_hydra, name_cell_folder, register_resolvers
from bnstudy.errors import UserError
from bnstudy.sweeps.grid import compose_cells, parse_axes

GROUPS = {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()}

Compose = Callable[[Sequence[str]], DictConfig]


class CountingCompose:
    """Composes as Hydra does for a job."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        self.calls += 1
        return compose("train", overrides=list(overrides), return_hydra_config=True)


@pytest.fixture
def composing() -> Iterator[CountingCompose]:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        yield CountingCompose()
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    ("arguments", "count", "composed"),
    [
        (["norm=batchnorm,none", "seed=range(0,2)"], 4, 2),
        pytest.param(["model.depth=2,4", "model.width=8,16"], 4, 1, marks=pytest.mark.long),
        (["norm=none,groupnorm", "optim.lr={none:0.1,groupnorm:0.2}", "seed=3,4"], 4, 2),
        pytest.param(
            ["optim.lr=0.1,{batchnorm:0.2,none:0.3}", "norm=batchnorm,none"],
            4,
            4,
            marks=pytest.mark.long,
        ),
        (["callbacks=[],all", "metrics.names=[hoyer],[dunn,hoyer]"], 4, 2),
        (["probe.train=null,100", "data.root='a b','c,d'"], 4, 1),
        (["optim.weight_decay=0,0.0,1e-4", "trainer.max_epochs=1,2"], 6, 1),
        pytest.param(
            ["experiment=quickstart,paper_mnist", "debug=fast", "seed=1,2"],
            4,
            2,
            marks=pytest.mark.long,
        ),
        (["study=${model.depth}_layers", "model.depth=2,4"], 2, 1),  # it follows from the axis
        (["cell=${study}-${seed}", "study=${norm.name}", "seed=0,1", "norm=none,affine"], 4, 2),
        (["cell='x-${cell_name:}'", "seed=1,2"], 2, 1),  # a resolver does not name the axis
        (["study=${cell}", "seed=1,2"], 2, 1),
        (["+copy=${optim}", "optim.lr=0.1,0.2"], 2, 1),  # nor does the name of a whole group
        (["+copy={a.b: '${norm.name}-${seed}'}", "seed=1,2"], 2, 1),
        (["cell=${hydra:job.override_dirname}", "seed=0,1"], 2, 3),  # known to Hydra alone
        pytest.param(["cell=one,two"], 2, 1, marks=pytest.mark.long),
        (["+optim.dampening=0,0.1"], 2, 2),  # a key that is added
        (["~model.initialization", "seed=0,1"], 2, 1),  # a network that says nothing of it
        (["model.initialization=he,torch"], 2, 1),
        (["seed=0,1", "seed=5,6"], 2, 1),  # the last one counts, as in Hydra
        (["seed=7"], 1, 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_every_cell_is_as_hydra_composes_it(
    composing: CountingCompose, arguments: list[str], count: int, composed: int
) -> None:
    grid = list(compose_cells(arguments, composing, GROUPS.__contains__))
    assert len(grid) == count
    assert composing.calls == composed
    for cell in grid:
        cfg = compose("train", overrides=list(cell.overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        exact = resolve(copy_without_hydra(cfg))
        assert cell.config == exact
        assert cell.folder.name == name_cell_folder(exact)
        assert str(cell.folder) == f"{cfg.hydra.sweep.dir}/{cfg.hydra.sweep.subdir}"


def test_cells_do_not_share_what_can_be_changed(composing: CountingCompose) -> None:
    one, two = compose_cells(["seed=0,1", "optim.lr=0.1"], composing, GROUPS.__contains__)
    one.config["optim"]["lr"] = 5
    assert two.config["optim"]["lr"] == 0.1


def test_a_value_that_is_missing_for_one_norm_is_told(composing: CountingCompose) -> None:
    grid = compose_cells(
        ["norm=batchnorm,none", "optim.lr={none:0.1}"], composing, GROUPS.__contains__
    )
    with pytest.raises(UserError, match="has no value for norm=batchnorm"):
        list(grid)


@pytest.mark.parametrize(
    "axis", ["seed=0,range(0,2)", "seed=choice(0,1),2", "seed=0,interval(0,1)", "seed=glob(*),3"]
)
def test_a_list_with_a_function_in_it_is_no_axis(axis: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_axes([axis])
    assert str(refused.value) == (
        f"{axis}: an axis is a list of values, or one function\n"
        "Write all values, separated by commas, or one function after seed="
    )
    parse_axes(["seed=0,1", "optim.lr=interval(0.01,1)", "model.depth=range(1,3)", "norm=glob(*)"])
