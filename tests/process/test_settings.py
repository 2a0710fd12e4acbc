"""Settings and secrets: laid over one another, checked, and named when they are wrong; secrets never shown."""

import msgspec
import pytest
from penstock_process.secrets import Unprinted, parse_chunk_secret, read_secret
from penstock_process.settings import ConfigError, check_one_of, check_ranges, load_settings, to_settings


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two settings, one with a range."""

    port: int = 80
    name: str = "a"

    def __post_init__(self) -> None:
        check_ranges(self, {"port": (1, 99, "ports")})


class Hidden(Unprinted, frozen=True):
    """A secret."""

    token: str = ""
    other: str = ""


def test_given_settings_lie_over_the_files(tmp_path):
    """YAML and JSON are read alike; None means not given."""
    path = tmp_path / "settings"
    for written in ("port: 7\nname: file\n", '{"port": 7, "name": "file"}'):
        path.write_text(written)
        assert load_settings(path, {"port": "9", "name": None}, Sample) == Sample(port=9, name="file")
    path.write_text("")
    assert load_settings(path, {}, Sample) == load_settings(None, {}, Sample) == Sample()


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("port: 100", "config: port is 100; allowed: 1 to 99 ports"),
        ("port: many", "config: .*port is 'many'"),
        ("prot: 1", "config: .*unknown field `prot`"),
        ("- 1", "holds a list; allowed: a mapping of settings"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(tmp_path, written, says):
    """Field, value and what is allowed."""
    path = tmp_path / "settings.yaml"
    path.write_text(written)
    with pytest.raises(ConfigError, match=says):
        load_settings(path, {}, Sample)


def test_a_file_that_is_not_there_is_named(tmp_path):
    """The path and the system's reason."""
    with pytest.raises(ConfigError, match=r"absent.*No such file"):
        load_settings(tmp_path / "absent", {}, Sample)


def test_words_are_checked_against_a_list():
    """The list is part of the message."""
    check_one_of("colour", "red", ("red", "blue"))
    with pytest.raises(ConfigError, match="colour is 'green'; allowed: red, blue"):
        check_one_of("colour", "green", ("red", "blue"))
    assert to_settings({"port": 5}, Sample, "here").port == 5


def test_secrets_come_from_the_environment_or_a_file_it_names(tmp_path):
    """The variable wins; a file that cannot be read is an error that names it."""
    file = tmp_path / "token"
    file.write_text("from file\n")
    environ = {"X_FILE": str(file)}
    assert read_secret(environ, "X") == "from file"
    assert read_secret({**environ, "X": "direct"}, "X") == "direct"
    assert read_secret({}, "X") == ""
    with pytest.raises(ConfigError, match=r"X_FILE is .*absent"):
        read_secret({"X_FILE": str(tmp_path / "absent")}, "X")


def test_secrets_are_not_printed():
    """`repr` says which are set, never what they are."""
    assert repr(Hidden(token="hush")) == "Hidden(token=***)"
    assert "hush" not in f"{Hidden(token='hush')}"


def test_the_chunk_secret_is_hexadecimal_and_never_quoted():
    """1 to 16 hex digits; nothing gives 0."""
    assert parse_chunk_secret("") == 0
    assert parse_chunk_secret("ffffffffffffffff") == 2**64 - 1
    for bad in ("hush", "1" * 17, "-1"):
        with pytest.raises(ConfigError, match="1 to 16 hex digits") as caught:
            parse_chunk_secret(bad)
        assert "hush" not in str(caught.value)
