"""From folders to labels, and back: a folder per class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mlimages.core import InputError, LabeledPath, as_path, counted, written_names
from mlimages.labels.class_names import ClassNames, with_class
from mlimages.labels.label_file import LabelFile
from mlimages.labels.scanning import PARTS, has_images, images_in, natural_key, passed_over, subfolders, walk
from mlimages.labels.splitting import groups_by_pattern
from mlimages.labels.tables import SHOWN, TableOptions

MOST_LOOSE = 0.01
"""Share of the images that may lie beside the class folders; with more of them the layout was understood wrongly."""


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """The images of a folder of class folders.

    Attributes:
        labels: all of them.
        left_out: what was not taken (`name: why`).
        parts: train, val and test by name, with one numbering of the classes, where the folder holds such parts.
    """

    labels: LabelFile
    left_out: tuple[str, ...]
    parts: Mapping[str, LabelFile] = field(default_factory=dict)


def open_parts(source: LabelFile | str | os.PathLike[str], table: TableOptions | None = None) -> dict[str, LabelFile]:
    """The label files that a label file or a folder stands for, by part: train, val and test, or one named "".

    Args:
        table: how to read a table; of a folder `class_from` applies.

    Raises:
        InputError: as `label_dir_auto`.
    """
    if isinstance(source, LabelFile):
        return {"": source}
    path, table = as_path(source), table or TableOptions()
    if not path.is_dir():
        labels = LabelFile(path, options=TableOptions.of(table))
        demand_items(labels)
        return {name: part.with_notes(labels.notes) for name, part in labels.parts.items()} or {"": labels}
    demand_table(path, table)
    if table.class_from:
        labels = label_dir_by_pattern(path, table.class_from)
        return {"": labels.with_notes([_described(path, "", labels), *labels.notes])}
    found = label_dir_auto(path)
    left_out = [f"left out: {what}" for what in found.left_out]
    parts = found.parts or {"": found.labels}
    return {name: part.with_notes([_described(path, name, part), *left_out]) for name, part in parts.items()}


def open_labels(source: LabelFile | str | os.PathLike[str], table: TableOptions | None = None) -> LabelFile:
    """A label file, or a folder of class folders as one that is not written.

    Args:
        table: how to read a table; of a folder `class_from` applies.

    Raises:
        InputError: as `label_dir_auto`, or the folder holds parts of a dataset.

    >>> open_labels("labels.txt").path.name
    'labels.txt'
    """
    parts = open_parts(source, table)
    if len(parts) > 1:
        raise InputError(f"{source} holds the parts {', '.join(parts)} of a dataset: name one of them")
    return next(iter(parts.values()))


def demand_items(labels: LabelFile) -> None:
    """See that a label file lists an image.

    Raises:
        InputError: it lists none.
    """
    if next(labels.named(), None) is None:
        raise InputError(f"{labels.path} lists no images")


def demand_table(folder: Path, table: TableOptions) -> None:
    """See that no option of tables but `class_from` is given with a folder.

    Raises:
        InputError: one is.
    """
    if TableOptions.of(table) != TableOptions(class_from=table.class_from):
        raise InputError(
            f"{folder} is a folder: --path-column, --label-column, --images and --suffix say how a table is read"
        )


def _described(folder: Path, part: str, labels: LabelFile) -> str:
    counts = Counter(label for _, label in labels.named())
    names = [f"{name} {counts[number]}" for number, name in enumerate(labels.class_names)]
    shown = ", ".join(names[:SHOWN]) + " ..." * (len(names) > SHOWN)
    part = f", {part}" if part else ""
    return f"{folder}{part}: {counted(counts.total(), 'image')}, {counted(len(names), 'class')}: {shown}"


def label_dir(folder: str | os.PathLike[str], label: int) -> LabelFile:
    """All images at and below `folder` as one class; hidden folders left out.

    Raises:
        InputError: no such folder.
    """
    root = _existing(as_path(folder))
    return LabelFile(
        root / "labels.txt",
        root,
        items=lambda: (LabeledPath(path, label) for path in images_in(root)),
        class_names=with_class((), label, root.resolve().name),
    )


def label_dir_auto(
    folder: str | os.PathLike[str], *, leaf: bool = False, class_names: ClassNames | None = None
) -> FolderLabels:
    """A class per folder, sorted naturally (1, 2, 10) and without regard to case.

    A folder that holds but one folder of class folders (`flowers/flowers/rose`) is passed through. Folders train, val
    and test of class folders are parts. Nothing is kept in memory: iterating the labels walks the folders.

    Args:
        folder: holds the class folders.
        leaf: each folder that holds images is a class, named by its path (`animals/cats`);
            else nested folders belong to the class folder they lie in.
        class_names: numbers that are fixed already.

    Raises:
        InputError: no such folder, no class folder with images in it, more than a few images beside them, two folders
            whose names are one, or a folder whose name is not among `class_names`.
    """
    given = _existing(as_path(folder))
    root = _passed_through(given, class_names or ())
    parts = _part_folders(root) or {"": root}
    classes = {part: _class_folders(path, leaf=leaf) for part, path in parts.items()}
    _demand_common(classes, parts)
    found = sorted({name for by_name in classes.values() for name in by_name}, key=natural_key)
    names = class_names or tuple(found)
    _demand_known(found, names, root)
    left_out = [f"{root.relative_to(given).as_posix()}: no class, the folders in it are"] if root != given else []
    left_out += [text for path in parts.values() for text in _left_out(path, root, leaf=leaf)]
    if "" not in parts:
        left_out += _left_out_beside(root, set(parts.values()))

    def items(part: str) -> Iterator[LabeledPath]:
        for name, path in classes[part].items():
            label = names.index(name)
            yield from (LabeledPath(image, label) for image in images_in(path, deep=not leaf))

    def listed(*wanted: str) -> LabelFile:
        name = f"labels_{wanted[0]}.txt" if len(wanted) == 1 and wanted[0] else "labels.txt"
        return LabelFile(root / name, root, items=lambda: chain.from_iterable(map(items, wanted)), class_names=names)

    by_part = {part: listed(part) for part in classes if part}
    return FolderLabels(listed(*classes), (*left_out, *passed_over(root)), by_part)


def _demand_common(classes: Mapping[str, Mapping[str, Path]], parts: Mapping[str, Path]) -> None:
    """See that parts of a dataset have classes in common: else their folders are no classes."""
    for part, own in classes.items():
        if part != "train" and own and "train" in classes and not own.keys() & classes["train"].keys():
            raise InputError(
                f"{parts[part]}: none of its folders ({', '.join(list(own)[:3])}) is a class of {parts['train']}: "
                f"label {parts['train']} alone, and this part with its table or --class-from"
            )


def label_dir_by_pattern(folder: str | os.PathLike[str], pattern: str) -> LabelFile:
    """The images at and below `folder`, their classes as the regular expression finds them in the paths below it.

    Images in whose path it finds nothing are left out; the `notes` say so.

    Raises:
        InputError: no such folder, not a regular expression, or it finds nothing in half of the paths.
    """
    root = _existing(as_path(folder))
    paths = list(images_in(root))
    found = groups_by_pattern([path.relative_to(root) for path in paths], pattern)
    class_of = [_clean(found.get(path.relative_to(root), "")) for path in paths]
    missing = [str(path.relative_to(root)) for path, name in zip(paths, class_of, strict=True) if not name]
    said = f"{pattern!r} finds no class in {len(missing)} of {len(paths)} paths ({', '.join(missing[:SHOWN])})"
    if 2 * len(missing) >= len(paths):
        raise InputError(said)
    names = tuple(sorted(set(filter(None, class_of)), key=natural_key))
    items = [LabeledPath(path, names.index(name)) for path, name in zip(paths, class_of, strict=True) if name]
    labels = LabelFile(root / "labels.txt", root, items=lambda: items, class_names=names)
    return labels.with_notes([f"left out: {said}"] if missing else [])


def has_class_folders(folder: Path) -> bool:
    """Whether images lie in folders below this one."""
    return bool(_image_folders(folder))


def _image_folders(root: Path) -> list[Path]:
    return [path for path in subfolders(root) if has_images(path, deep=True)]


def _passed_through(root: Path, class_names: Sequence[str]) -> Path:
    """The folder that holds the class folders: below folders that hold nothing but one folder of folders."""
    inner = root
    while not _loose(inner) and len(folders := _image_folders(inner)) == 1 and folders[0].name not in class_names:
        inner = folders[0]
    return root if _loose(inner) or not _image_folders(inner) else inner


def _part_folders(root: Path) -> dict[str, Path]:
    """The folders of the parts by name; none where these are class folders."""
    folders = _image_folders(root)
    if len(folders) < 2 or not all(path.name.lower() in PARTS for path in folders):
        return {}
    labelled = {PARTS[path.name.lower()]: path for path in folders if has_class_folders(path)}
    if not labelled or len({PARTS[path.name.lower()] for path in folders}) < len(folders):
        names = ", ".join(path.name for path in folders)
        raise InputError(f"{root} holds parts of a dataset ({names}), but not as train/CLASS, val/CLASS, test/CLASS")
    return labelled


def _class_folders(root: Path, *, leaf: bool) -> dict[str, Path]:
    """The class folders by class name."""
    classes: dict[str, Path] = {}
    for path in walk(root) if leaf else subfolders(root):
        if path == root or not has_images(path, deep=not leaf):
            continue
        name = _clean(path.relative_to(root).as_posix())
        if name in classes:
            raise InputError(f"{classes[name]} and {path} are one class by name ({name!r}): rename one, or join them")
        classes[name] = path
    loose = _loose(root)
    if loose and not classes:
        raise InputError(
            f"{root} holds {len(loose)} images and no class folders: {_table_hint(root)}make a folder for each class, "
            "say --class-from REGEX if the names tell the class, or --label N if all are of one class"
        )
    if len(loose) > MOST_LOOSE * sum(1 for path in (classes.values() if loose else ()) for _ in images_in(path)):
        raise InputError(
            f"{root}: {len(loose)} images lie beside the class folders ({loose[0].name} ...): move each into its "
            "class's folder, or away"
        )
    return classes


def _table_hint(root: Path) -> str:
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv", ".jsonl"))
    return f"label it by its table (`mlimages label {tables[0]} -o labels.txt`), " if tables else ""


def _loose(root: Path) -> list[Path]:
    """Images in the folder itself, but those that we made (a mean image, a contact sheet)."""
    images = list(images_in(root, deep=False))
    ours = written_names(root) if images else set()
    return [path for path in images if path.name not in ours]


def _left_out(part: Path, root: Path, *, leaf: bool) -> list[str]:
    folders = [path for path in (walk(part) if leaf else subfolders(part)) if path != part]
    empty = [f"{_clean(path.relative_to(root).as_posix())}: no images" for path in folders
             if not has_images(path, deep=True)]  # fmt: skip
    return [*empty, *(f"{path.relative_to(root).as_posix()}: beside the class folders" for path in _loose(part))]


def _left_out_beside(root: Path, parts: set[Path]) -> list[str]:
    """What lies beside the parts, such as a test set without classes."""
    loose = [f"{path.name}: beside the folders of the parts" for path in _loose(root)]
    others = [path for path in subfolders(root) if path not in parts]
    return loose + [f"{path.name}: {sum(1 for _ in images_in(path))} images without class folders" for path in others]


def append(existing: LabelFile, added: LabelFile, *, by_number: bool) -> LabelFile:
    """The images of both files, those of `added` that `existing` lists already left out.

    Classes are united by name, or `by_number`: then only a class without a name takes that of `added`.
    """
    new = added.without(item.path for item in existing)
    merged = existing.merge(new)
    if not by_number:
        return merged
    names = existing.defined_class_names
    for number, name in enumerate(added.class_names):
        names = with_class(names, number, name)
    return LabelFile(existing.path, existing.img_root, items=lambda: chain(existing, new), class_names=names)


def _existing(root: Path) -> Path:
    if not root.is_dir():
        raise InputError(f"no folder at {root}")
    return root


def _demand_known(classes: Sequence[str], names: ClassNames, root: Path) -> None:
    if not classes:
        found = "".join(f"; {text}" for text in passed_over(root))
        raise InputError(f"no images in {root}: expected a folder per class with images in it{found}")
    unknown = [name for name in classes if name not in names]
    if unknown:
        known = ", ".join(names[:10])
        raise InputError(
            f"{root / unknown[0]}: its name is not one of the {len(names)} classes ({known}): "
            "rename the folder or add a line to the class definition"
        )


def _clean(name: str) -> str:
    """A class name that a line of a label file can hold, in Unicode's composed form."""
    return unicodedata.normalize("NFC", " ".join(name.split()))
