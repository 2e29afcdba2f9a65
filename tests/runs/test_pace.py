"""Lines within long epochs."""

import pytest

from larq_adambnn.runs import pace

MINUTE, DAY = 60, 86_400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "0 min"),
        (59 * MINUTE, "59 min"),
        (60 * MINUTE, "1 h 0 min"),
        (DAY + 5 * 3600, "1 d 5 h"),
    ],
)
def test_durations(seconds, text):
    assert pace._duration(seconds) == text


def test_a_line_every_five_minutes(monkeypatch, capsys):
    """The first iteration, which is traced, takes a minute; the others a second each."""
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    callback = pace.Pace((2, 3), batch_size=32)
    callback.set_params({"steps": 1000})
    callback.on_epoch_begin(3)
    now[0] = MINUTE
    for batch in range(1000):
        callback.on_train_batch_end(batch)
        now[0] += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "step 2  epoch 2/3  iteration 301/1,000  32.0 images/s  12 min left of the epoch, "
        "28 min of all"
    )
    assert [line.split()[5] for line in lines] == ["301/1,000", "601/1,000", "901/1,000"]
