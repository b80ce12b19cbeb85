"""Match the classes of a label file to those of a model, by name."""

from __future__ import annotations

from collections import Counter

from mlimages.core import InputError, LabeledPath, format_examples
from mlimages.inference.bundle import OnnxBundle
from mlimages.labels import LabelFile, class_definition_path, find_source, merge_classes


def align_class_indices(labels: LabelFile, bundle: OnnxBundle) -> list[LabeledPath]:
    """Return the images of a label file with the class indices of the bundle instead of those of the label file.

    The class indices are in `LabeledPath.label`, or if the bundle is multi-label, in `LabeledPath.labels`.

    Raises:
        InputError: a class of the label file has no class of the same name in the bundle, or more than one; or the
            label file is multi-label and the bundle is not.
    """
    if labels.is_multi_label and not bundle.multi_label:
        raise InputError(
            f"{find_source(labels)} is a multi-label file, but {bundle.path} predicts one class per image: train a "
            "multi-label model with `mlimages finetune`"
        )
    names, (used, (given,)) = bundle.class_names, merge_classes([labels])
    indices = {name: index for index, name in enumerate(names)}
    if unknown := [name for name in used if name not in indices]:
        where, definition = find_source(labels), class_definition_path(labels.path)
        advice = f"rename it in {definition if definition.exists() else where}"
        if where != labels.path:
            advice = "rename or move the folder of this class"
        elif not labels.defined_class_names:
            advice = f"write the class names to {definition}, one per line, in the order of their indices"
        raise InputError(
            f"{where} has the class {unknown[0]!r}, which is not in {bundle.path} (its classes: "
            f"{format_examples(names, 5)}): classes are matched by name; {advice}"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1 and name in used]:
        raise InputError(
            f"{bundle.path} has more than one class {repeated[0]!r}: classes are matched by name; export the network "
            "again with a unique name for each class"
        )
    items = ((LabeledPath(item.path, -1, item.class_indices) if bundle.multi_label else item) for item in labels)
    return [item.renumber_classes(lambda label: indices[given[label]]) for item in items]
