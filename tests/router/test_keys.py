"""API keys: who a key is, how the file is reloaded, and what isolation and priority caps make of a request."""

import os

import pytest
from penstock_router.keys import ANONYMOUS, KeyFileError, KeyRing, Tenant, priority_of, same_key, tenant_salt

FILE = b"sk-red: {tenant: red, weight: 2, priority_cap: 10, isolation: true}\nsk-blue: {tenant: blue}\n"


def ring(tmp_path, text=FILE):
    path = tmp_path / "keys.yaml"
    path.write_bytes(text)
    return path, KeyRing(path)


def test_without_a_file_everybody_is_anonymous():
    """No file, no authentication."""
    assert KeyRing(None).tenant_of(None) is ANONYMOUS


@pytest.mark.parametrize(
    ("header", "tenant"),
    [
        (b"Bearer sk-red", "red"),
        (b"bearer  sk-blue ", "blue"),
        (b"Bearer sk-no", None),
        (b"Basic sk-red", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_key_is_its_tenant_and_nothing_else_is(tmp_path, header, tenant):
    """Only a listed key after the Bearer scheme is somebody."""
    found = ring(tmp_path)[1].tenant_of(header)
    assert (found.tenant if found else None) == tenant


def test_json_is_read_as_well(tmp_path):
    """A JSON file is a YAML file."""
    assert ring(tmp_path, b'{"k": {"tenant": "t", "priority_cap": -5}}')[1].tenant_of(b"Bearer k") == Tenant("t", priority_cap=-5)


def test_a_changed_file_takes_effect_and_a_bad_one_does_not(tmp_path):
    """A reload replaces all keys; a broken file is told of once and leaves the old ones in force."""
    path, keys = ring(tmp_path)
    assert not keys.reload_if_changed()
    path.write_bytes(b"sk-new: {tenant: new}")
    os.utime(path, ns=(1, 1))
    assert keys.reload_if_changed() and keys.tenant_of(b"Bearer sk-new") and not keys.tenant_of(b"Bearer sk-red")
    path.write_bytes(b"sk-other: {tenant: x, weight: -1}")
    with pytest.raises(KeyFileError, match="weight is -1"):
        keys.reload_if_changed()
    assert keys.tenant_of(b"Bearer sk-new") and not keys.reload_if_changed()
    path.unlink()
    with pytest.raises(KeyFileError, match="cannot read"):
        keys.reload_if_changed()
    assert keys.tenant_of(b"Bearer sk-new") and not keys.reload_if_changed()
    path.write_bytes(FILE)
    assert keys.reload_if_changed() and keys.tenant_of(b"Bearer sk-red")


@pytest.mark.parametrize("text", [b"sk-secret: 5", b"sk-secret: {tenat: x}", b"{sk-secret", b"sk-secret: {tenant: ''}", b"- sk-secret"])
def test_a_bad_file_is_refused_without_quoting_a_key(tmp_path, text):
    """The message names fields, never a key."""
    with pytest.raises(KeyFileError) as caught:
        ring(tmp_path, text)
    assert "sk-secret" not in str(caught.value)


def test_an_isolated_tenant_has_a_salt_of_its_own():
    """Salts differ between tenants and between secrets, and there is none without isolation."""
    red, blue = Tenant("red", isolation=True), Tenant("blue", isolation=True)
    assert tenant_salt(Tenant("red"), 1) == b""
    assert len({tenant_salt(red, 1), tenant_salt(blue, 1), tenant_salt(red, 2)}) == 3
    assert tenant_salt(red, 1) == tenant_salt(Tenant("red", isolation=True, weight=9), 1)


def test_a_priority_is_capped_by_the_tenant():
    """Asking for more than the cap gives the cap, less is as asked, nothing is 0 or the cap if that is lower."""
    assert priority_of(b"50", Tenant("t", priority_cap=10)) == 10
    assert priority_of(b"-50", Tenant("t", priority_cap=10)) == -50
    assert priority_of(None, Tenant("t", priority_cap=-3)) == -3
    for wrong in (b"101", b"-101", b"high", b"1.5", b"\xff"):
        with pytest.raises(ValueError, match=r"-100\.\.100"):
            priority_of(wrong, ANONYMOUS)


def test_the_admin_key_must_match():
    """Only the bearer of the whole key passes."""
    assert same_key(b"Bearer abc", "abc")
    assert not any(same_key(header, "abc") for header in (None, b"", b"abc", b"Bearer ab", b"Bearer abcd"))
