"""Settings of a worker: what is wrong is named with its value and what is allowed; secrets are never shown."""

import json

import pytest
from penstock_core.endpoint import Role
from penstock_process.settings import ConfigError
from penstock_worker.config import RANGES, WorkerConfig, WorkerSecrets, load_config, load_secrets, secrets_environment


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 70_000}, "port is 70000; allowed: 0 to 65535"),
        ({"speed": 0}, "speed is 0.0; allowed: 0.01 to 1000 times"),
        ({"profile": "fast"}, "profile is 'fast'; allowed: .*polynomial-reference"),
        ({"engine": "magic"}, "engine is 'magic'; allowed: sim"),
        ({"id": "a b"}, "id is 'a b'; allowed: letters"),
        ({"id": ""}, "id is ''"),
        ({"model": "m{x}"}, "without braces"),
        ({"role": "cook"}, "role is 'cook'"),
        ({"port": "many"}, "port is 'many'"),
        ({"advertise_url": "host:1"}, "allowed: http://host:port"),
        ({"colour": 1}, "unknown field `colour`"),
        ({"log_level": "loud"}, "log_level is 'loud'; allowed: debug"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    """The error holds the field, its value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_the_command_line_lies_over_the_file(tmp_path):
    """Settings given on the command line win; those not given (None) leave the file's or the default."""
    path = tmp_path / "worker.json"
    path.write_text(json.dumps({"port": 1_234, "role": "decode", "speed": 2}))
    config = load_config(path, {"port": 99, "speed": None})
    assert (config.port, config.role, config.speed, config.host) == (99, Role.DECODE, 2.0, "127.0.0.1")
    path.write_text("[]")
    with pytest.raises(ConfigError, match="a mapping of settings"):
        load_config(path, {})
    path.write_text("{")
    with pytest.raises(ConfigError, match="neither YAML nor JSON"):
        load_config(path, {})
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent", {})


@pytest.mark.parametrize(
    ("settings", "listens", "url"),
    [
        ({"host": "", "advertise_host": "10.0.0.7"}, "0.0.0.0", "http://10.0.0.7:80"),
        ({"host": "", "advertise_host": "fd00::7"}, "::", "http://[fd00::7]:80"),
        ({"host": "::1"}, "::1", "http://[::1]:80"),
        ({"advertise_host": "fd00::7", "advertise_url": "https://w.example:443"}, "127.0.0.1", "https://w.example:443"),
    ],
)
def test_an_address_is_bracketed_where_it_must_be(settings, listens, url):
    """IPv4 and IPv6, in a Pod (no host given) and elsewhere."""
    config = load_config(None, settings)
    assert (config.listen_host, config.url(config.listen_host, 80)) == (listens, url)


def test_every_number_has_a_range():
    """No numeric setting is without bounds, and the defaults lie inside theirs."""
    numbers = {name for name in WorkerConfig.__struct_fields__ if isinstance(getattr(WorkerConfig(), name), int | float)}
    assert numbers | {"kv_tokens"} == set(RANGES)


def test_secrets_come_from_the_environment_or_files_and_are_not_shown(tmp_path):
    """Both sources work, go through a child's environment unchanged, and no repr holds a secret."""
    token = tmp_path / "token"
    token.write_text("very-secret\n")
    environ = {"PENSTOCK_FLEET_TOKEN_FILE": str(token), "PENSTOCK_CHUNK_SECRET": "ff", "PENSTOCK_REDIS_URL": "redis://:pw@h/0"}
    secrets = load_secrets(environ)
    assert secrets == WorkerSecrets(chunk_secret=255, fleet_token="very-secret", redis_url="redis://:pw@h/0")
    assert load_secrets(secrets_environment(secrets)) == secrets
    assert load_secrets({}) == WorkerSecrets()
    assert "secret=***" in repr(secrets)
    for hidden in ("very-secret", "255", "pw"):
        assert hidden not in repr(secrets)
    with pytest.raises(ConfigError, match="1 to 16 hex digits") as error:
        load_secrets({"PENSTOCK_CHUNK_SECRET": "not-hex"})
    assert "not-hex" not in str(error.value)
    with pytest.raises(ConfigError, match="PENSTOCK_FLEET_TOKEN_FILE"):
        load_secrets({"PENSTOCK_FLEET_TOKEN_FILE": str(tmp_path / "absent")})


def test_a_role_that_does_not_exist_is_named_with_those_that_do():
    """The value and the allowed words."""
    with pytest.raises(ConfigError, match="role is 'cook'; allowed: prefill, decode, both"):
        load_config(None, {"role": "cook"})
