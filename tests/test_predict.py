import csv
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import vitlab
from tests.evaluate.test_commands import timm_tensors
from tests.train.conftest import tiny_experiment, uninterrupted  # noqa: F401
from vitlab import predict
from vitlab.config import ConfigError
from vitlab.data import open_source
from vitlab.data.image_list import find_images
from vitlab.printable import printable
from vitlab.runs.arguments import read_lines


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns a folder of seven images, one of them broken, beside files that are no images."""
    root = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("b/2.png", "b/10.png", "a/x.png", "a/deep/y.PNG", "c.png", "d.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(open_source(tiny_experiment().data, train=False).images[i, ..., 0]).save(path)
    (root / "a" / "broken.jpg").write_bytes(b"no image")
    (root / "a" / "notes.txt").write_text("no image either")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "z.png").write_bytes((root / "c.png").read_bytes())
    (root / "a" / "loop").symlink_to(root)
    return root


def names(paths, root):
    return [str(pathlib.Path(path).relative_to(root)) for path in paths]


def test_predict_prints_the_classes_in_the_order_of_their_probabilities(uninterrupted, photos, capsys):  # noqa: F811
    assert predict.main([f"--workdir={uninterrupted}", f"{photos}/c.png", f"{photos}/a/broken.jpg", f"{photos}/none.png"]) == 2
    output, errors = capsys.readouterr()
    path, *lines = output.splitlines()
    shares = [float(line.split("%")[0]) for line in lines]
    assert path.endswith("c.png") and len(lines) == 5 and shares == sorted(shares, reverse=True)
    assert len(errors.splitlines()) == 3 and errors.splitlines()[-1] == "2 of 3 images could not be read"
    assert "broken.jpg is no image that can be decoded" in errors and "none.png cannot be read: No such file" in errors


def test_a_folder_is_walked_in_order_without_hidden_files_and_circles(photos):
    expected = ["a/broken.jpg", "a/deep/y.PNG", "a/x.png", "b/10.png", "b/2.png", "c.png", "d.png"]
    assert names(find_images([str(photos)]), photos) == expected


def test_patterns_lists_and_files_keep_the_order_of_the_arguments(photos, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"{photos}/d.png\r\n\n{photos}/b\n".encode())
    found = find_images([f"{photos}/d.png", f"{photos}/**/x.png", f"@{tmp_path}/list.txt"], [tmp_path / "list.txt"])
    assert names(found, photos) == ["d.png", "a/x.png", *["d.png", "b/10.png", "b/2.png"] * 2]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(photos, tmp_path):
    (tmp_path / "a[1].png").write_bytes((photos / "c.png").read_bytes())
    assert find_images([f"{tmp_path}/a[1].png"]) == [f"{tmp_path}/a[1].png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["*.nothing"], "the pattern .*nothing matches no file"),
        (["@none.txt"], "the list none.txt cannot be read"),
        (["empty"], "the folder empty holds no image"),
        ([], "there is no image to look at"),
        (["@empty.txt"], "the list empty.txt is empty"),
    ],
)
def test_what_names_no_image_is_refused(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ConfigError, match=words):
        find_images(arguments)


def test_a_csv_has_a_row_for_each_image_in_order(uninterrupted, photos, tmp_path, capsys):  # noqa: F811
    output = tmp_path / "out.csv"
    assert predict.main([f"--workdir={uninterrupted}", f"--output={output}", "--top=2", "--batch_size=3", str(photos)]) == 2
    assert "out.csv: 7 images, 1 of them could not be read" in capsys.readouterr().out
    rows = list(csv.DictReader(output.open()))
    assert [row["path"] for row in rows] == find_images([str(photos)])
    run = vitlab.load_run(uninterrupted)
    for row in rows:
        if row["path"].endswith("broken.jpg"):
            assert row["class_1"] == "" and "no image" in row["error"]
        else:
            top = run.predict(row["path"])[0].top(2)
            assert [(row[f"class_{i}"], pytest.approx(float(row[f"probability_{i}"]), rel=1e-4)) for i in (1, 2)] == list(top)
            assert not row["error"]
    assert not list(tmp_path.glob("*.tmp"))


def test_json_lines_have_predictions_or_an_error(uninterrupted, photos, tmp_path):  # noqa: F811
    output = tmp_path / "out.jsonl"
    predict.main([f"--workdir={uninterrupted}", f"--output={output}", "--top=99", f"{photos}/a"])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert "error" in lines[0] and "predictions" not in lines[0]
    assert len(lines[1]["predictions"]) == 10 and sum(p["probability"] for p in lines[1]["predictions"]) == pytest.approx(1, abs=1e-4)


def test_a_failed_write_leaves_the_old_file(uninterrupted, photos, tmp_path, monkeypatch):  # noqa: F811
    output = tmp_path / "out.csv"
    output.write_text("old")

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict, "write_atomically", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        predict.main([f"--workdir={uninterrupted}", f"--output={output}", f"{photos}/c.png"])
    assert output.read_text() == "old"


def test_step_and_raw_choose_the_weights(uninterrupted, photos, capsys):  # noqa: F811
    texts = []
    for arguments in ([], ["--step=56"]):
        predict.main([f"--workdir={uninterrupted}", *arguments, f"{photos}/c.png"])
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]


def test_a_checkpoint_of_others_predicts_with_names_from_a_file(uninterrupted, photos, tmp_path, capsys):  # noqa: F811
    run = vitlab.load_run(uninterrupted)
    save_file(timm_tensors(run.trained.weights["params"]), tmp_path / "model.safetensors")
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    fields = ["image_size=28", "in_channels=1", "patch_size=14", "dim=16", "depth=2", "num_heads=2"]
    arguments = ["--model=vit_tiny_patch16", f"--weights={tmp_path}/model.safetensors", *(f"--config.model.{f}" for f in fields)]
    arguments += ["--config.augment.crop=pad", f"--classes={tmp_path}/classes.txt", "--top=1", f"{photos}/c.png"]
    assert predict.main(arguments) == 0
    label = run.predict(photos / "c.png")[0].label
    assert capsys.readouterr().out.splitlines()[1].endswith(f"class {label}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workdir=x", "--top=0"], "--top=0 must be at least 1"),
        (["--workdir=x", "--top=-3"], "--top=-3 must be at least 1"),
        (["--workdir=x", "--top=many"], "invalid int value"),
        (["--workdir=x", "--batch_size=0"], "--batch_size=0 must be at least 1"),
        (["--workdir=x", "--output=out.txt"], "must be a file"),
        (["--workdir=x", "--output=nowhere/out.csv"], "in a folder that exists"),
        (["--workdir=x", "--model=y"], "either --workdir=DIR, or --model=NAME"),
        ([], "either --workdir=DIR, or --model=NAME"),
        (["--model=y"], "go together"),
        (["--model=y", "--weights=z", "--step=3"], "choose among the weights of a run folder"),
        (["--workdir=x", "--classes=z"], "describe a checkpoint of others"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(arguments, words):
    with pytest.raises(ConfigError, match=words):
        predict.main([*arguments, "image.png"])


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), (None, "cannot be read")])
def test_a_class_list_that_is_none_is_refused(text, words, tmp_path):
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_lines(tmp_path / "classes.txt", "--classes")


def test_names_cannot_reach_the_terminal_as_escape_sequences(uninterrupted, photos, tmp_path, capsys):  # noqa: F811
    hostile = tmp_path / "a\x1b[31m\nb.png"
    hostile.write_bytes((photos / "c.png").read_bytes())
    assert predict.main([f"--workdir={uninterrupted}", str(hostile), f"{tmp_path}/\x1bnone.png"]) == 2
    output, errors = capsys.readouterr()
    assert "\x1b" not in output + errors and r"a\x1b[31m\nb.png" in output


def test_printable_keeps_letters_and_escapes_the_rest():
    assert printable("Käse 猫 кот") == "Käse 猫 кот"
    assert printable("a\tb\u202e\udcff\u2028") == r"a\tb\u202e\udcff\u2028"


def test_help_describes_images_outputs_and_exit_codes(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    text = capsys.readouterr().out
    assert "Exit codes:" in text and "@list.txt" in text and "--output" in text and np.all([word in text for word in ("--step", "--raw")])
