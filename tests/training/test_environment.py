"""Description of the code in a record."""

import subprocess
from pathlib import Path

import pytest

from bnstudy.training.environment import _redact_patch, describe_environment


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@here", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_what_differs_from_the_commit_is_kept_as_a_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, study = tmp_path / "own", tmp_path / "own" / "multirun" / "mine"
    (own / "deep").mkdir(parents=True)
    git(tmp_path, "init", "--quiet", "own")
    code = own / "deep" / "net.py"
    code.write_text("token = tokens[0]\nwidth = 8\nlast = 1\n")
    (own / "notes.txt").write_text("one\n")
    git(own, "add", ".")
    git(own, "commit", "--quiet", "-m", "a")
    monkeypatch.chdir(own / "deep")
    clean = describe_environment(study).own_git
    assert clean is not None
    assert (clean.commit, clean.dirty, clean.patch) == (git(own, "rev-parse", "HEAD"), False, None)

    study.mkdir(parents=True, exist_ok=True)
    (study / "run.json").write_text("{}")  # not tracked
    (own / "notes.txt").write_text("two\n")  # no source
    assert describe_environment(study).own_git == clean.model_copy(update={"dirty": True})
    code.write_text(
        "token = tokens[0]\nwidth = 16\r\ntoken = tokens[1]\n"
        'key = "hf_abcdefghijklmnopqrst"\nlast = 1\n',
        newline="",
    )
    found, again = describe_environment(study), describe_environment(study)
    assert found.own_git == again.own_git
    assert found.own_git
    assert found.own_git.patch
    bnstudys = [found.git.patch] if found.git and found.git.patch else []  # this checkout's
    assert len(list(study.glob("patches/*.patch"))) == 1 + len(bnstudys)
    git(own, "checkout", "--quiet", ".")
    git(own, "apply", str(study / found.own_git.patch))
    assert code.read_bytes() == (
        b'token = tokens[0]\nwidth = 16\r\ntoken = tokens[1]\nkey = "[removed]"\nlast = 1\n'
    )
    assert (own / "notes.txt").read_text() == "one\n"


def test_no_line_of_a_patch_has_a_credential() -> None:
    difference = """\
diff --git a/net.py b/net.py
@@ -1,2 +1,2 @@
 api_key: str = "hunter2"
-os.environ["API_TOKEN"] = 'hunter2'
+login(password=b"hunter2", token=tokens[0])
+loss = -token * weight if token == "x" else token
+run("train logger.api_key=hunter2 --token hunter2", f"token={tokens['a']}")
diff --git a/conf.yaml b/conf.yaml
@@ -1,1 +1,1 @@
 api_key: hunter2
+tokenizer: gpt
"""
    note, *lines = _redact_patch(difference).splitlines()
    assert "replaced by [removed]" in note
    assert "hunter2" not in str(lines)
    assert lines[4:7] == [
        '+login(password=b"[removed]", token=tokens[0])',
        '+loss = -token * weight if token == "x" else token',
        """+run("train logger.api_key=[removed] --token [removed]", f"token={tokens['a']}")""",
    ]
    clean = "\n".join(line for line in difference.splitlines() if "hunter2" not in line)
    assert _redact_patch(clean) == clean
