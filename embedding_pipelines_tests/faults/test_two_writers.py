"""A few rounds of `two_writers`."""

from pathlib import Path

import pytest

from embedding_pipelines_tests.faults.two_writers import main, try_two


def test_two_writers_that_are_killed_and_sleep_lose_nothing(tmp_path: Path) -> None:
    outcome = try_two(4, (tmp_path / "bucket").as_uri(), tmp_path, seed=7)
    assert outcome.problems == []
    assert outcome.acknowledged


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "ftp://host/bucket"])
def test_an_address_that_holds_no_bucket_is_one_sentence(
    address: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    with pytest.raises(SystemExit):
        main(["1", address])
    told = capfd.readouterr().err
    assert f"{address} cannot hold the bucket: " in told
    assert "Traceback" not in told
