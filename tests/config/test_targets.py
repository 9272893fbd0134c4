"""Only what bnstudy provides, or the user has named, is called because a record names it."""

from pathlib import Path
from typing import Any

import pytest

from bnstudy.config import targets
from bnstudy.config.targets import find_targets, instantiate_group, require_trusted, trust
from bnstudy.errors import UserError

CALL = {"_target_": "os.system", "_args_": ["true"]}
CNN = {"_target_": "bnstudy.models.CNN", "depth": 2}


@pytest.fixture(autouse=True)
def _nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_trusted", set())


@pytest.mark.parametrize(
    ("group", "options", "place"),
    [
        ("model", CALL, r"model\._target_=os\.system"),
        ("model", CNN | {"depth": CALL}, r"model\.depth\._target_=os\.system"),
        ("norm", {"eps": [1, {"deep": CALL}]}, r"norm\.eps\.1\.deep\._target_=os\.system"),
        ("optim", {"lr": CALL}, r"optim\.lr\._target_"),
        ("data", CNN, r"data\._target_=bnstudy\.models\.CNN"),  # known, but at another place
        ("data", {"root": CNN}, r"data\.root\._target_=bnstudy\.models\.CNN"),
        ("model", {"_target_": "bnstudy.models.cnn.torch.load"}, "torch.load"),
        ("model", {"_target_": ["os.system"]}, r"model\._target_=\["),
        ("model", CNN | {"_partial_": True}, r"model\._partial_=True"),
        ("model", CNN | {"_args_": [1]}, r"model\._args_"),
        ("data", {"root": "${oc.env:HOME}"}, r"data\.root=\${oc\.env:HOME}"),
        ("callbacks.mine", {"_target_": "mine.Clock"}, r"callbacks\.mine\._target_=mine\.Clock"),
        ("callbacks.gradient_norms", {"_target_": "mine.Clock"}, "mine.Clock"),
    ],
)
def test_other_code_is_refused(group: str, options: dict[str, Any], place: str) -> None:
    with pytest.raises(UserError, match=place) as raised:
        require_trusted({group: options})
    assert len(str(raised.value).splitlines()) == 2


def test_what_bnstudy_provides_is_known() -> None:
    require_trusted({"model": CNN, "data": {"_target_": "bnstudy.data.MNIST5k", "root": "~"}})
    gradient_norms = {"_target_": "bnstudy.callbacks.GradientNorms", "every_n_steps": 1}
    require_trusted({"callbacks.gradient_norms": gradient_norms})


def test_what_the_user_names_is_trusted_by_its_whole_name() -> None:
    own = {"_target_": "mine.Net", "block": {"_target_": "mine.Block", "_partial_": True}}
    assert list(find_targets({"model": own})) == ["mine.Net", "mine.Block"]
    with pytest.raises(UserError, match=r"add --trust mine\.Net"):
        require_trusted({"model": own})
    trust(["mine.Net"])
    with pytest.raises(UserError, match=r"add --trust mine\.Block"):
        require_trusted({"model": own})
    trust(["mine.Block"])
    require_trusted({"model": own})
    with pytest.raises(UserError, match=r"mine\.Net\.os\.system"):
        require_trusted({"model": {"_target_": "mine.Net.os.system"}})


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("ownpack.nets.Nett", "the module ownpack.nets has no Nett; did you mean Net?"),
        ("ownpack.nets.Nett.build", "the module ownpack.nets has no Nett; did you mean Net?"),
        ("ownpack.nets.net", "the module ownpack.nets has no net; did you mean Net?"),
        ("ownpack.nets.Xyzzy", "the module ownpack.nets has no Xyzzy; it has Net, build"),
        ("ownpack.nest.Net", "the module ownpack has no nest; did you mean nets?"),
        ("ownpack.Xyzzy", "the module ownpack has no Xyzzy; it has broken, needy, nets"),
        ("ownpack.nets.Net.mak", "the class ownpack.nets.Net has no mak; did you mean make?"),
        ("ownpak.nets.Net", "cannot be imported (ModuleNotFoundError: No module named 'ownpak')"),
        ("ownpack.broken.Net", "cannot be imported (AttributeError: module 'math' has no"),
        ("ownpack.needy.Net", "cannot be imported (ModuleNotFoundError: No module named 'absent'"),
    ],
)
def test_a_misspelt_target_is_told_from_a_module_that_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    (folder := tmp_path / "ownpack").mkdir()
    for name, code in {
        "__init__": "",
        "broken": "import math\nmath.Net",
        "needy": "import absent.part",
        "nets": "from math import sqrt\nclass Net:\n    def make(self): ...\ndef build(): ...",
    }.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as raised:
        instantiate_group("data", {"_target_": target})
    message = str(raised.value)
    assert words in message
    assert target in message
    assert len(message.splitlines()) == 2
    assert ("PYTHONPATH" in message) == ("ModuleNotFoundError" in message)
