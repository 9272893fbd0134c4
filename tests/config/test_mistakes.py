"""Messages about mistakes in a command line that Hydra would explain by an error of its own."""

import pytest

from tests.conftest import CommandLine


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim=null"], "optim=null does not exist; expected adam, adamw, sgd\n"),
        (["optim=5", "-m"], "optim=5 does not exist; expected adam, adamw, sgd\n"),
        (["optim=sgd,null", "-m"], "optim=null does not exist; expected adam, adamw, sgd\n"),
        (["callbacks=null"], "callbacks=null does not exist; expected activation_drift, all, "),
        (
            ["hydra/launcher=null", "-m"],
            "hydra/launcher=null does not exist; expected the name of an option\n",
        ),
    ],
)
def test_a_group_that_is_set_to_no_name_is_refused_with_its_options(
    words: list[str], message: str, command_line: CommandLine
) -> None:
    result = command_line(*words)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_words_that_quotes_do_not_mend_are_explained(command_line: CommandLine) -> None:
    result = command_line("é=1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "é=1: it cannot be read\nWrite KEY=VALUE, without spaces around =\n"


@pytest.mark.parametrize(
    ("word", "quoted"), [("study=é", "'study=\"é\"'"), ("study=é,b", "'study=\"...\"'")]
)
def test_a_character_that_hydra_reads_only_in_quotes_is_explained(
    word: str, quoted: str, command_line: CommandLine
) -> None:
    for words in ([word], [word, "-m"]):
        result = command_line(*words)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == (
            f"{word}: it has a character that must be in quotes\n"
            f"Write {quoted}, with the single quotes for the shell\n"
        )
