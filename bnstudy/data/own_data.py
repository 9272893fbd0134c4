"""Construction of data from a configuration: a data set of bnstudy's, or data of the user's own.

The user's own data are a LightningDataModule, or torch data sets for the splits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
from hydra.utils import get_object
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset

from bnstudy.config.targets import TARGET, instantiate_group, select_accepted_arguments
from bnstudy.data.datasets import EXPECTED_DATA, DatasetModule, SplitSource, global_seed
from bnstudy.data.module import DataModule, ImageDataModule
from bnstudy.errors import UserError
from bnstudy.terms import EVALUATED_SPLITS, SPLITS, EvaluatedSplit

# Keys of bnstudy's that the group `data` has for every target. A target gets those that its
# signature names.
SHARED_KEYS = ("batch_size", "name", "validation")
# Hooks of a LightningDataModule that would change batches after they are made.
BATCH_HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device")


def make_data(options: Mapping[str, Any], seed: int, probe: dict[Any, Any]) -> DataModule:
    """Make the data of a configuration: a data set of bnstudy's, or one of the user's.

    Args:
        options: Configuration group `data`, resolved.
        seed: Seed of the run.
        probe: Size of the probe set by split; see `DataModule`.

    Raises:
        UserError: The target cannot be imported or called, or does not return data.
    """
    target = options[TARGET]
    if _is_image_module(target):
        images: ImageDataModule = instantiate_group("data", options, seed=seed, probe=probe)
        return images
    own = {key: value for key, value in options.items() if key not in SHARED_KEYS}
    shared = {key: options[key] for key in SHARED_KEYS if key in options}
    name = f"data.{TARGET}={target}"
    # Random choices, such as those of `random_split`, are the same in all runs and processes.
    with global_seed(0):
        accepted = select_accepted_arguments("data", target, shared)
        by_split = _find_splits(instantiate_group("data", own, **accepted), name)
    sources = {
        split: SplitSource.from_data(data, f"{name}: {split}") for split, data in by_split.items()
    }
    return DatasetModule(
        sources,
        name,
        class_names=_class_names(sources["train"].dataset),
        batch_size=options.get("batch_size"),
        validation=options.get("validation", 0),
        seed=seed,
        probe=probe,
    )


def _is_image_module(target: str) -> bool:
    try:
        data_class = get_object(target)
    except Exception:  # `select_accepted_arguments` raises it again, with an explanation
        return False
    return isinstance(data_class, type) and issubclass(data_class, ImageDataModule)


def _find_splits(data: Any, name: str) -> dict[EvaluatedSplit, Any]:
    """Return the data loader or data set of each split."""
    if isinstance(data, L.LightningDataModule):
        return _find_loaders(data, name)
    if isinstance(data, Mapping) and {*data} >= {*SPLITS}:
        if unknown := {*data} - {*EVALUATED_SPLITS}:
            raise UserError(
                f"{name}: {', '.join(sorted(map(str, unknown)))}: no such split\n"
                f"Splits are {', '.join(EVALUATED_SPLITS)}"
            )
        return dict(data)
    if isinstance(data, tuple | list) and len(data) == len(SPLITS):
        return dict(zip(SPLITS, data, strict=True))
    keys = f" with keys {', '.join(map(str, data))}" if isinstance(data, Mapping) else ""
    raise UserError(f"{name} is of type {type(data).__name__}{keys}\n{EXPECTED_DATA}")


def _find_loaders(module: L.LightningDataModule, name: str) -> dict[EvaluatedSplit, Any]:
    """Return the data loader of each split.

    If the module has no test loader, its validation loader is that of the split `test`.
    """
    for hook in BATCH_HOOKS:
        if is_overridden(hook, module, L.LightningDataModule):
            raise UserError(
                f"{name}: bnstudy makes the batches itself, and does not call its {hook}\n"
                "Do the same in the data set, or in the network"
            )
    module.prepare_data()
    module.setup("fit")
    loaders: dict[EvaluatedSplit, Any] = {"train": module.train_dataloader()}
    has_test = is_overridden("test_dataloader", module, L.LightningDataModule)
    if is_overridden("val_dataloader", module, L.LightningDataModule):
        loaders["validation" if has_test else "test"] = module.val_dataloader()
    if has_test:
        module.setup("test")
        loaders["test"] = module.test_dataloader()
    if "test" not in loaders:
        raise UserError(f"{name}: has neither test_dataloader nor val_dataloader\nDefine one")
    for split, loader in loaders.items():
        if not isinstance(loader, DataLoader):
            raise UserError(
                f"{name}: its loader of {split} is a {type(loader).__name__}\n"
                "Return one torch.utils.data.DataLoader"
            )
    return loaders


def _class_names(dataset: Dataset[Any]) -> Sequence[str]:
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple | np.ndarray):  # may be the number of classes
        return ()
    return [str(name) for name in names]
