"""The table for users of 0.5: each row is run, and a row without a case fails."""

import builtins
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image
from typer.testing import CliRunner

import mlimages
from mlimages import ImageProperty, LabeledImage, LabelFile, Normalization, TrainingData, label_dir_auto
from mlimages.cli.main import app
from mlimages.core import InputError
from mlimages.labels import write_class_names

TABLE = (Path(__file__).parents[2] / "docs" / "upgrading.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (.*) \| (.*) \|$", TABLE, re.MULTILINE)[1:])
NAMES = {"label_dir_auto": label_dir_auto, "LabelFile": LabelFile, "TrainingData": TrainingData,
         "Normalization": Normalization, "ImageProperty": ImageProperty, "LabeledImage": LabeledImage,
         "mlimages": mlimages, "Path": Path, "numpy": np}  # fmt: skip
WORDS = {"PATH": "photos", "FOLDER": "photos", "FILE": "L.txt", "LABELS": "L.txt", "WNID": "n11531193"}

# For each row, by the text of its first column: commands and expressions; those that compare must be true.
CASES = {
    "a script that calls `mlimages.scripts.gather_command`": ["callable(mlimages.gather)"],
    "`gather ... -imagenet --wnid n11531193`": ["mlimages gather imagenet n11531193 -o FOLDER"],
    "`label_command PATH --out FILE`": ["mlimages label PATH -o FILE"],
    "`label_command PATH --label 1 --add --out FILE`": ["mlimages label PATH --label 1 --append -o FILE"],
    "`LabelingMachine(root).label_dir_auto(label_file=F, path_from_root=P)`": [
        "label_dir_auto(Path(root, P)).labels.write(F)",
        "len(list(LabelFile(F))) == 2",
    ],
    '`label_dir_auto(..., mode="a")`': [
        "mlimages.labels.append_labels(LabelFile(F), label_dir_auto(folder).labels, by_class_index=False).write(F)"
    ],
    "`label_dir_auto(..., label_def_file=D)`": [
        "mlimages.labels.write_class_names(D, labels.class_names)",
        "D.read_text() == Path('L_class_def.txt').read_text()",
    ],
    "`label_dir(label, label_file=F)`": [
        "mlimages.labels.label_dir(folder, label).write(F)",
        "[item.label for item in LabelFile(F)] == [1, 1]",
    ],
    "`LabelingMachine.read_label_def(path)`": [
        "dict(enumerate(mlimages.labels.read_class_names(path)))",
        "dict(enumerate(mlimages.labels.read_class_names(path))) == {0: 'a', 1: 'b'}",
    ],
    "`label_def.txt`": [
        "mlimages label FOLDER --classes label_def.txt",
        'LabelFile(F, class_names=mlimages.labels.read_class_names("label_def.txt"))',
    ],
    "`mlimages.model.LabelFile(path, img_root=...)`": ["mlimages.LabelFile(path, img_root=...)"],
    '`LabelFile(path, image_label_separator=",")`': [
        "LabelFile(path)",
        "[[item.label for item in LabelFile(f'by{n}.txt', 'photos')] for n in range(3)] == [[0, 1]] * 3",
    ],
    "`ImageProperty(width=32, gray_scale=True)`": [
        'ImageProperty(32, resize="crop", gray_scale=True)',
        "ImageProperty(32)",
        "next(TrainingData(lf, ImageProperty(6, resize='crop', gray_scale=True)).generate())[0].shape == (1, 6, 6)",
    ],
    "`lf.to_training_data(prop)`": ["TrainingData(lf, prop)"],
    "`mlimages.training.TrainingData(path, img_root=R, image_property=prop)`": [
        "TrainingData(LabelFile(path, R), prop)"
    ],
    "`TrainingData(..., mean_image_file=M)`": [
        "td.make_mean_image('M.png').num_images == 2",
        "(TrainingData(lf, prop, mean_image_file='M.npy').mean_image == td.mean_image).all()",
        "(TrainingData(lf, prop, mean_image='M.npy').mean_image == td.mean_image).all()",
    ],
    "`TrainingData(..., scale=S)`, `td.scale = S`": [
        "TrainingData(lf, prop, normalization=Normalization(scale=255))",
        "REFUSED td.scale = 255",
    ],
    "`TrainingData(..., color=False)`, `td.color = False`": [
        "TrainingData(lf, ImageProperty(32, gray_scale=True))",
        "REFUSED td.color = False",
    ],
    '`td.make_mean_image("mean.png")`': [
        'td.make_mean_image("mean.png")',
        "abs(sum(x for x, _ in td.generate())).max() < 1e-6",
        "numpy.load('mean.npy').shape == (3, 4, 4)",
        'TrainingData("L_used_in_mean.txt", prop)',
        "len(list(LabelFile('L_used_in_mean.txt'))) == 2 and td.labels.path == F",
    ],
    "`td.generate()`": ["[(x.shape, y) for x, y in td.generate()] == [((3, 4, 4), 0), ((3, 4, 4), 1)]"],
    "`td.generate_batches(size)`": [
        "[(x.shape, y.tolist()) for x, y in td.generate_batches(3)] == [((2, 3, 4, 4), [0, 1])]",
        "next(td.generate_batches(1))[1].dtype == numpy.int64",
    ],
    "`td.fetch()`, `td.convert(im)`": [
        "[LabeledImage(item.path, item.label).convert(td.image_property) for item in td.labels]"
    ],
    "`td.shuffle(overwrite=True)`": ["td.shuffle(seed)", "td.shuffle(seed) is not td"],
    "`td.data_to_image(array, label)`": [
        "td.data_to_image(array, label, raw=True)",
        "td.data_to_image(array + 2, label).image.getpixel((0, 0)) == (255, 255, 255)",
        "td.data_to_image(array, label, raw=True).shape == (3, 4, 4)",
    ],
    "`im.to_array(numpy, color=True)`": [
        "im.to_array()",
        "im.to_array(numpy, color=True).shape == im.to_array().shape == (3, 8, 8)",
        "im.to_array(numpy, color=False).shape == (1, 8, 8)",
    ],
    "`LabeledImage.from_array(array, label)`, `im.load()`, `im.to_grayscale()`, `im.downscale(w, h)`, "
    "`im.crop_from_center(w, h)`, `im.crop_from_lefttop(l, t, w, h)`": [
        "LabeledImage.from_array(array, label).image.size == (4, 4)",
        "im.load().to_grayscale().image.mode == 'L'",
        "im.load().downscale(3, 2).image.size == (3, 2)",
        "im.load().crop_from_center(3, 2).image.size == im.load().crop_from_lefttop(1, 2, 3, 2).image.size == (3, 2)",
        "im.load().downscale(3).image.size == im.load().downscale(3, 0).image.size == (3, 3)",
        "REFUSED im.downscale(3, -1)",
    ],
    "`ImageProperty(width, resize_by_downscale=True)`, `resize_by_center=True`": [
        "ImageProperty(4, resize_by_downscale=True) == ImageProperty(4, resize='downscale')",
        "ImageProperty(4, resize_by_center=True) == ImageProperty(4, resize='crop')",
        "[ImageProperty(4, resize=name) for name in ('position', 'shorter', 'squash', 'letterbox')]",
    ],
    "`lf.fetch(load_image=False)`": ["[(item.path.name, item.label) for item in lf] == [('1.jpg', 0), ('2.jpg', 1)]"],
    "`lf.fetch()`": ["[LabeledImage(item.path, item.label).load() for item in lf]"],
    "`ImagenetAPI(root).gather(wnid, include_subset=True)`, `--subset`": [
        "mlimages gather imagenet WNID --subtree -o root"
    ],
    "`lf.shuffle(overwrite=True)`": ["lf.shuffle(seed).write(lf.path)"],
    "`examples/chainer_alex.py`": ["mlimages finetune LABELS --model alex"],
}


def parse(words: list[str]) -> None:
    """Check the commands and options without running them."""
    context = typer.main.get_command(app).make_context("mlimages", words)
    while hasattr(context.command, "resolve_command") and (rest := [*context._protected_args, *context.args]):
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The names that the table's expressions use: two images of two classes."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a/1.jpg", "b/2.jpg")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number * 90, 0, 0)).save(tmp_path / "photos" / name)
    for number, separator in enumerate(",;\t"):
        Path(f"by{number}.txt").write_text(f"a/1.jpg{separator}0\nb/2.jpg{separator}1\n")
    write_class_names(Path("label_def.txt"), ["a", "b"])
    lf = label_dir_auto("photos").labels.write("L.txt")
    prop = ImageProperty(4)
    return {"root": ".", "P": "photos", "F": Path("L.txt"), "D": Path("def.txt"), "folder": Path("photos"),
            "labels": lf, "label": 1, "path": Path("label_def.txt"), "lf": lf, "seed": 0, "R": ".", "prop": prop,
            "td": TrainingData(lf, prop), "im": LabeledImage("photos/a/1.jpg"),
            "array": np.zeros((3, 4, 4), np.float32)}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_table_is_true(values: dict[str, object], row: str) -> None:
    assert row in CASES, "a row without a case: add one"
    spellings = {code for code in re.findall(r"`([^`]+)`", ROWS[row]) if re.search(r"\(|^mlimages \S+ ", code)}
    assert spellings <= set(CASES[row])
    for code in CASES[row]:
        if code.startswith("REFUSED "):
            with pytest.raises((AttributeError, InputError)):
                exec(code.removeprefix("REFUSED "), {**NAMES, **values})
        elif code.startswith("mlimages "):
            words = [WORDS.get(word, word) for word in shlex.split(code)[1:]]
            if words[0] == "label":
                done = CliRunner().invoke(app, words)
                assert done.exit_code == 0, (done.output, done.exception)
            else:
                parse(words)
        else:
            result = eval(code.replace("...", "R"), {**NAMES, **values})
            assert not isinstance(result, bool | np.bool_) or result, code


def test_no_case_is_left_of_a_row_that_is_gone() -> None:
    assert set(CASES) == set(ROWS)


def test_functions_that_are_not_names_of_mlimages_are_given_with_their_module() -> None:
    code = " ".join(re.findall(r"`([^`]+)`", " ".join(ROWS.values())))
    names = set(re.findall(r"(?<![\w.])([a-z_]\w*)\(", code))
    assert {name for name in names if not (hasattr(mlimages, name) or hasattr(builtins, name))} == set()
