"""Tests of generated images with known groups inside each class."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline

from bnstudy.config.composition import resolve
from bnstudy.data import PlantedGroups
from bnstudy.errors import UserError
from tests.conftest import CommandLine, Compose, description, read_rows

Load = Callable[..., PlantedGroups]


@pytest.fixture
def load(composed: Compose) -> Load:
    """Load the data set of the shipped configuration with changed options."""

    def loaded(seed: int = 0, **options: Any) -> PlantedGroups:
        config = resolve(composed("data=planted"))
        data: PlantedGroups = instantiate(
            config["data"] | options, seed=seed, probe=config["probe"]
        )
        data.setup()
        return data

    return loaded


def pixels(data: PlantedGroups, split: str) -> np.ndarray:
    return data.data.images[split].flatten(1).numpy() / 255


def test_every_sample_has_a_group_of_its_class(load: Load) -> None:
    data = load(
        classes=4, groups_per_class=2, samples_per_group={"train": 7, "test": 3}, channels=3
    )
    assert data.input_shape == (3, 28, 28)
    assert data.data.class_names == ("0", "1", "2", "3")
    for split, count in (("train", 7), ("test", 3)):
        assert data.data.images[split].dtype == torch.uint8
        assert data.groups[split].dtype == torch.int64
        assert torch.bincount(data.groups[split]).tolist() == [count] * 8
        assert torch.equal(data.groups[split] // 2, data.data.labels[split])
    assert load(image_size=17, samples_per_group={"train": 2, "test": 1}).input_shape == (1, 17, 17)


@pytest.mark.parametrize("fill", ["mean", "black", "reflect"])
@pytest.mark.parametrize("size", [1, 5, 28])
def test_a_shift_out_of_view_is_refused(load: Load, fill: str, size: int) -> None:
    few = {"image_size": size, "samples_per_group": {"train": 2, "test": 1}, "fill": fill}
    with pytest.raises(UserError, match=rf"data.shift={size}: .*{size}x{size}.*\n.* {size - 1}$"):
        load(shift=size, **few)
    data = load(shift=size - 1, **few)
    images = data.normalize(data.data.images["train"])
    augment = data.augment.with_black_of(data.normalize)
    assert augment(images, torch.Generator()).shape == images.shape


@pytest.mark.slow
def test_the_images_are_a_function_of_the_options_alone(load: Load) -> None:
    few = {"train": 4, "test": 2}
    facts = load(samples_per_group=few).facts()
    torch.manual_seed(1)
    assert load(samples_per_group=few, seed=1).facts() == facts
    others = [{"noise": 1.5}, {"classes": 9}, {"groups_per_class": 2}, {"image_size": 27}]
    digests = {load(samples_per_group=few, **other).facts()["sha256"] for other in others}
    assert len(digests | {facts["sha256"]}) == len(others) + 1


def test_both_splits_have_the_same_prototypes_and_other_noise(load: Load) -> None:
    data = load()
    train, test = pixels(data, "train"), pixels(data, "test")
    nearest = NearestCentroid().fit(train, data.groups["train"])
    assert nearest.score(test, data.groups["test"]) == 1
    noise_of_train = train[::150] - nearest.centroids_
    noise_of_test = test[::50] - nearest.centroids_
    assert abs(np.corrcoef(noise_of_train.ravel(), noise_of_test.ravel())[0, 1]) < 0.03
    # Noise and prototypes of the same size each have half of the pixels' variance.
    assert 255 * noise_of_train.std() == pytest.approx(40 / 2**0.5, rel=0.03)


def test_a_prototype_is_smooth_and_is_kept_when_there_are_more(load: Load) -> None:
    one = {"noise": 0, "samples_per_group": {"train": 1, "test": 1}}
    images = load(**one).data.images["train"].view(10, 3, 28, 28)
    fewer = load(classes=4, groups_per_class=2, **one).data.images["train"].view(4, 2, 28, 28)
    assert torch.equal(images[:4, :2], fewer)
    steps = images.float().diff(dim=3).abs()
    assert steps.mean() < images.float().std() / 8


def test_groups_of_a_class_are_no_more_alike_than_those_of_different_classes(load: Load) -> None:
    one = {"train": 1, "test": 1}
    data = load(classes=20, groups_per_class=10, noise=0, samples_per_group=one)
    distances = squareform(pdist(pixels(data, "train")))
    labels = data.data.labels["train"].numpy()
    same_class = labels[:, None] == labels
    other_group = ~np.eye(len(labels), dtype=bool)
    within, between = distances[same_class & other_group], distances[~same_class]
    assert within.mean() == pytest.approx(between.mean(), rel=0.05)


@pytest.mark.slow
def test_clustering_finds_the_groups_and_not_the_classes(load: Load) -> None:
    data = load(classes=5)
    images, groups, labels = pixels(data, "test"), data.groups["test"], data.data.labels["test"]
    found = KMeans(15, n_init=20, random_state=0).fit_predict(images)
    assert adjusted_rand_score(groups, found) > 0.95
    found = KMeans(5, n_init=20, random_state=0).fit_predict(images)
    assert adjusted_rand_score(labels, found) < 0.5


def test_a_linear_classifier_does_not_learn_all_of_it(load: Load) -> None:
    data = load()
    linear = make_pipeline(PCA(20, random_state=0), LogisticRegression(max_iter=1000))
    linear.fit(pixels(data, "train"), data.data.labels["train"])
    assert 0.5 < linear.score(pixels(data, "test"), data.data.labels["test"]) < 0.99


@pytest.mark.slow
def test_a_trained_network_shows_the_groups(command_line: CommandLine, tmp_path: Any) -> None:
    result = command_line(
        "data=planted", "data.groups_per_class=1,3", "data.classes=4", "data.batch_size=16",
        "data.samples_per_group={train:40,test:20}", "model.depth=2", "model.width=4",
        "trainer.max_epochs=2", "metrics.every_n_epochs=2",
        "metrics.names=[intraclass_silhouette]", "logger=none", "-m",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = {}
    for record in tmp_path.glob("multirun/*/*/run.json"):
        groups = description(record.parent)["config"]["data"]["groups_per_class"]
        last = {
            (row["layer_index"], row["metric"]): row["value"]
            for row in read_rows(record.parent)
            if row["epoch"] == 2 and row["split"] == "test"
        }
        assert last[-1, "accuracy"] > 0.9
        found[groups] = last[1, "intraclass_silhouette"]
    assert found[1] < 0.1
    assert found[3] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("data.classes=1", "an integer of at least 2"),
        ("data.groups_per_class=0", "an integer of at least 1"),
        ("data.samples_per_group.test=0", "an integer of at least 1 for train and one for test"),
        ("data.samples_per_group=50", "an integer of at least 1 for train and one for test"),
        ("data.noise=-1", "a finite number of at least 0"),
        ("data.noise=inf", "a finite number of at least 0"),
        ("data.image_size=null", "an integer"),
        ("data.channels=0", "an integer of at least 1"),
    ],
)
def test_options_that_cannot_work_are_told(
    command_line: CommandLine, option: str, told: str
) -> None:
    result = command_line("data=planted", option, "logger=none")
    assert result.returncode == 1
    key = option.partition("=")[0]
    assert result.stderr.startswith(key.removesuffix(".test"))
    assert f"expected {told}" in result.stderr
    assert len(result.stderr.splitlines()) <= 2
