"""Settings of a router: ranges, files, the command line's endpoints, and secrets that stay secret."""

import pytest
from penstock_core.endpoint import Role
from penstock_process.settings import ConfigError
from penstock_router.config import RANGES, RouterConfig, Secrets, ServedModel, load_config, load_secrets, parse_endpoint


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_number_out_of_range_is_named_with_its_value_and_what_is_allowed(name):
    """Each ranged setting, one step over its highest value, is refused by name."""
    low, high, _ = RANGES[name]
    with pytest.raises(ConfigError) as caught:
        RouterConfig(**{name: high + 1})
    assert name in str(caught.value) and repr(high + 1) in str(caught.value) and f"{low:g} to {high:g}" in str(caught.value)


def test_every_number_among_the_settings_has_a_range():
    """A new numeric setting without a range would slip through unchecked."""
    config = RouterConfig()
    numbers = {name for name in config.__struct_fields__ if type(getattr(config, name)) in (int, float)}
    assert numbers == set(RANGES)


def test_the_command_line_lies_over_the_file(tmp_path):
    """A setting given on the command line wins; one that is not given (None) leaves the file's."""
    path = tmp_path / "router.yaml"
    path.write_text("port: 9000\ndeadline_s: 5\nendpoints:\n- {url: 'http://a:1', role: decode}\n")
    config = load_config(path, {"port": 9001, "deadline_s": None})
    assert (config.port, config.deadline_s, config.endpoints[0].role) == (9001, 5.0, Role.DECODE)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("port: high", "port is 'high'"),
        ("prot: 1", "prot"),
        ("- 1", "list"),
        ("endpoints: [{url: 'ftp://x'}]", "ftp://x"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path, text, named):
    """Wrong types, unknown names, a list for a mapping, a bad URL and broken YAML each say what is wrong."""
    path = tmp_path / "router.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_config(path, {})


def test_models_are_found_in_a_registry_only():
    """Models without a registry cannot work; a registry without models means all that are there."""
    with pytest.raises(ConfigError, match="models are given without redis_url"):
        RouterConfig(models=(ServedModel(name="m"),))
    assert RouterConfig(redis_url="redis://x").models == ()


def test_an_endpoint_is_read_from_one_argument():
    """URL, then name=value pairs; what is no setting is a connector fact."""
    given = parse_endpoint("http://host:8000/,role=prefill,model=m,connector=sglang,bootstrap_host=h,bootstrap_port=8998")
    assert (given.url, given.role, given.model, given.connector) == ("http://host:8000", Role.PREFILL, "m", "sglang")
    assert given.connector_facts == {"bootstrap_host": "h", "bootstrap_port": 8998}


@pytest.mark.parametrize(
    "written", ["host:8000", "http://h:1,role", "http://h:1,role=cook", "http://h:1,connector=carrier-pigeon", "http://h:1/v1"]
)
def test_a_wrong_endpoint_argument_is_refused(written):
    """Each way of writing an endpoint wrongly is a ConfigError."""
    with pytest.raises(ConfigError):
        parse_endpoint(written)


def test_secrets_come_from_the_environment_or_a_file_and_are_never_shown(tmp_path):
    """Files are read where the variable ends with _FILE; neither repr nor an error message quotes a secret."""
    token = tmp_path / "token"
    token.write_text("hush-hush\n")
    secrets = load_secrets({"PENSTOCK_FLEET_TOKEN_FILE": str(token), "PENSTOCK_CHUNK_SECRET": "00000000000000ff"})
    assert (secrets.fleet_token, secrets.chunk_secret) == ("hush-hush", 255)
    assert "hush" not in repr(secrets) and repr(Secrets()) == "Secrets()"
    with pytest.raises(ConfigError) as caught:
        load_secrets({"PENSTOCK_CHUNK_SECRET": "not-hex-at-all"})
    assert "not-hex" not in str(caught.value)
