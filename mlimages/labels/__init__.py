"""Label files: which picture is of which class."""

from mlimages.labels.class_names import ClassNames, class_definition_path, read_class_names, write_class_names
from mlimages.labels.folders import PICTURE_SUFFIXES, FolderLabels, append, label_dir, label_dir_auto, lay_out
from mlimages.labels.label_file import LabelFile, listed_paths, write_label_file
from mlimages.labels.splitting import groups_by_pattern, split

__all__ = [
    "PICTURE_SUFFIXES",
    "ClassNames",
    "FolderLabels",
    "LabelFile",
    "append",
    "class_definition_path",
    "groups_by_pattern",
    "label_dir",
    "label_dir_auto",
    "lay_out",
    "listed_paths",
    "read_class_names",
    "split",
    "write_class_names",
    "write_label_file",
]
