"""`make clip-demo`: upload, sensor, run, output, search, rename and delete, by images."""

import pytest

from scripts.clip_demo import main


@pytest.mark.slow
def test_all_of_it_is_as_it_should_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "")  # the demo's own do not outlive it
    assert main("", 8) == 0
    printed = capsys.readouterr().out
    assert "asks for a run: 8 new" in printed
    assert "8 rows of release 2 in s3://photos-out/results" in printed
    assert printed.endswith("All of it was as it should be.\n")
    assert "too long" not in printed  # of texts that are not the user's
    assert max(map(len, printed.splitlines())) <= 80
