from vitlab.train.records import Records


def test_lines_after_the_step_and_a_cut_line_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path, step=0)
    for step in (2, 4, 6):
        records.write(step, {"train_loss": 1 / step})
    records.close()
    whole = path.read_text()
    path.write_text(whole + '{"step": 7, "tr')
    records = Records(path, step=4)
    assert [line["step"] for line in records.lines] == [2, 4]
    assert records.at(4, "train_loss") == {"step": 4, "train_loss": 0.25} and records.at(4, "eval_top1") is None
    records.write(6, {"train_loss": 1 / 6})
    records.close()
    assert path.read_text() == whole
