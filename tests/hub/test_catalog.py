from octavo.hub.catalog import load_catalog
from octavo.paths import resources_dir


def test_the_starter_model_is_complete() -> None:
    entry = load_catalog(resources_dir())["starter"]
    assert entry.id == "starter"
    assert entry.license == "Apache-2.0"
    assert entry.member.endswith(entry.file_name)
    assert len(entry.sha256) == len(entry.download_sha256) == 64
    assert entry.size_bytes > entry.download_bytes > 0
