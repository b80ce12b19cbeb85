"""Convert text from the web to portable file names, and record which paths of a gathered folder are in use."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, count
from typing import NamedTuple
from urllib.parse import unquote

from mlimages.core import ImageRef
from mlimages.gathering.store.manifest import UInt64Set
from mlimages.gathering.store.shard_storage import strip_shard_name

logger = logging.getLogger(__name__)

MAX_NAME_BYTES = 120
"""Maximum bytes of a name in UTF-8: file systems allow 255, and a suffix, a number and a temporary name must fit."""

_FORBIDDEN_CHARACTERS = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
IMAGES_PER_SUBFOLDER = 10_000
"""Number of images of a class after which its next numbered subfolder is used. Deleted images are not counted: if some
were deleted between runs, a subfolder may get more images."""

MAX_FOLDER_DEPTH = 16
"""Maximum number of nested folders of a label."""
MAX_FOLDER_BYTES = 1024
"""Maximum bytes of a label's folder in UTF-8: paths may have 4096, including the output folder."""

_OWN_FILE_NAME = re.compile(
    r"(manifest.*\.jsonl|manifest\.parquet|metadata\.jsonl|attribution.*\.md|images.*\.tar)", re.IGNORECASE
)
_DOTS_AND_SPACES_AT_ENDS = re.compile(r"^[\s.]+|(?<![\s.])[\s.]+$")
_WINDOWS_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def sanitize_name(text: str, *, default_name: str) -> str:
    """Convert a text to a visible file name, valid on every file system; `default_name` if nothing remains of it."""
    name = _DOTS_AND_SPACES_AT_ENDS.sub("", _FORBIDDEN_CHARACTERS.sub("_", unicodedata.normalize("NFC", text)))
    name = name.encode("utf-8", "ignore")[:MAX_NAME_BYTES].decode("utf-8", "ignore")
    name = _DOTS_AND_SPACES_AT_ENDS.sub("", name)
    if _WINDOWS_RESERVED_NAME.fullmatch(name):
        name = f"_{name}"
    return name or default_name


@lru_cache(maxsize=1024)
def label_to_folder(label: str) -> str:
    """Return the folder of a class, relative to the output folder; each `/` in the label begins a subfolder.

    Names that mlimages uses for its files, and paths too deep or long for file systems, are changed.
    """
    parts = [part for part in (sanitize_name(part, default_name="") for part in label.split("/")) if part] or ["images"]
    if _OWN_FILE_NAME.fullmatch(parts[0]):
        parts[0] = f"_{parts[0]}"
    kept = parts[:MAX_FOLDER_DEPTH]
    while len("/".join(kept).encode()) > MAX_FOLDER_BYTES:
        kept.pop()
    if kept == parts:
        return "/".join(parts)
    return "/".join([*kept, hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:16]])


def file_stem_from_url(url: str) -> str:
    """Return the last part of a URL's path, without its suffix, as a file name."""
    path = url.partition("#")[0].partition("?")[0].rstrip("/").partition("://")[2]
    last = unquote(path.rpartition("/")[2]) if "/" in path else ""
    stem, dot, suffix = last.rpartition(".")
    if not (dot and stem and len(suffix) <= 5 and suffix.isalnum()):
        stem = last
    return sanitize_name(stem, default_name="image")


def insert_subfolder(stem: str, num_images: int) -> str:
    """Return the path of an image in a numbered subfolder of its class folder.

    Args:
        stem: path of the image, without its suffix.
        num_images: number of images that the class already has.

    >>> insert_subfolder("cats/a", 30_000)
    'cats/part-0003/a'
    """
    folder, _, name = stem.rpartition("/")
    return f"{folder}/part-{num_images // IMAGES_PER_SUBFOLDER:04d}/{name}"


def strip_subfolder(folder: str) -> str:
    """Return the class folder of a numbered subfolder; other folders are returned unchanged.

    >>> strip_subfolder("cats/part-0003"), strip_subfolder("cats")
    ('cats', 'cats')
    """
    return re.sub(r"/part-\d{4,}$", "", folder)


def generate_paths(stem: str, suffix: str, link_hash: str, *, is_only_writer: bool) -> Iterator[str]:
    """Yield possible paths of an image, of which the caller uses the first that is free.

    For `cats/a` and `.jpg`: `cats/a.jpg`, `cats/a-HASH.jpg`, `cats/a-HASH-1.jpg`, `cats/a-HASH-2.jpg` and so on.

    Args:
        stem, suffix: the path of the image without its suffix, and the suffix.
        link_hash: hash of the link, 16 hexadecimal digits.
        is_only_writer: whether no other run may write to the folder. If another run may, the path without the hash is
            omitted, since both could use it.
    """
    if is_only_writer:
        yield f"{stem}{suffix}"
    yield f"{stem}-{link_hash[:8]}{suffix}"
    for number in count(1):
        yield f"{stem}-{link_hash}-{number}{suffix}"


class PathsInUse:
    """The folders and file names that a gathered folder uses; names that differ only in case count as the same.

    Each folder belongs to one label: the folder `Pets/dog` to the label `Pets/dog`, and its parent folder `Pets` to the
    label `Pets`, even if this label has no images. The label `pets` then needs another folder, since it differs from
    `Pets` only in case: it gets `pets-1a2b3c4d`, with a hash of the label.

    A label keeps the folder in which it already has images. A folder without images belongs to the label for which
    `plan_folder` is called first.
    """

    def __init__(self) -> None:
        self._labels_by_folder: dict[str, str] = {}
        self._folders_by_label: dict[str, str] = {}
        self._labels_with_images: set[str] = set()
        self._conflicts_by_label: dict[str, str] = {}
        self._paths = UInt64Set()

    def reserve(self, label: str, path: str) -> bool:
        """Record the path of an image of this label as in use; return whether the path was free."""
        path = strip_shard_name(path)
        if label not in self._labels_with_images and is_in_folder_of(label, path):
            self._adopt_folder_of_image(label, path)
        return path.casefold() not in self._labels_by_folder and self._paths.add(_hash_path(path))

    def is_misplaced(self, label: str, path: str) -> bool:
        """Return whether an image of this label is in a folder that belongs to another label.

        The folders of `Cats` and `cats` have the same name, since case is ignored. If two processes that do not know
        each other's labels store images of both in one folder, it belongs to one label, and the images of the other
        label are misplaced. An image that the user has moved to a folder of another name is not misplaced.
        """
        folder, labels = label_to_folder(label), [level.label for level in _split_label_folders(label)]
        above = accumulate(folder.casefold().split("/"), "{}/{}".format)
        return path.startswith(f"{folder}/") and any(
            self._labels_by_folder.get(name, owner) != owner for name, owner in zip(above, labels, strict=True)
        )

    def assign_folder(self, label: str) -> str:
        """Return the folder for a label's images (see `plan_folder`); warn once if a hash was appended to its name."""
        self.plan_folder(label)
        if conflict := self._conflicts_by_label.pop(label, ""):
            logger.warning("class %r: its images are in %s, because %s", label, self._folders_by_label[label], conflict)
        return self._folders_by_label[label]

    def plan_folder(self, label: str) -> None:
        """Choose the folder of a label, unless it has one, before `assign_folder` needs it for an image.

        Call it for the labels in the order of the source: if two of them would share a folder, the first one gets it,
        whichever image arrives first. Thus all runs choose the same folders.
        """
        if label in self._folders_by_label:
            return
        path = ""
        for level in _split_label_folders(label):
            plain = f"{path}{level.name}"
            is_own = self._claim_folder(plain, level.label)
            path = f"{plain}/" if is_own else f"{path}{level.fallback_name}/"
            if not is_own:
                self._conflicts_by_label[label] = self._describe_conflict(plain)
        self._folders_by_label[label] = path[:-1]

    def find_renamed_folders(self, labels: Iterable[str]) -> dict[str, str]:
        """Return the folders of those of `labels` whose folder has another name, by label."""
        folders = {label: self._folders_by_label.get(label, label) for label in labels}
        return {label: folder for label, folder in folders.items() if folder != label}

    def release_folders(self, labels: Collection[str]) -> None:
        """Make the folders of `labels`, which have lost all their images, available to other labels.

        Folders of other labels that have no images yet are released too: `plan_folder` chooses them again when needed.
        """
        self._labels_with_images.difference_update(labels)
        folders = {each: self._folders_by_label[each] for each in self._labels_with_images}
        self._labels_by_folder, self._folders_by_label, self._conflicts_by_label = {}, {}, {}
        for each, folder in folders.items():
            self._adopt_folder_of_image(each, f"{folder}/")

    def _adopt_folder_of_image(self, label: str, path: str) -> None:
        """Make the folder of the image at `path` the folder of its label, unless it belongs to another label."""
        levels = _split_label_folders(label)
        above = list(accumulate(path.split("/")[: len(levels)], "{}/{}".format))
        if all(self._claim_folder(folder, level.label) for folder, level in zip(above, levels, strict=True)):
            self._folders_by_label[label] = above[-1]
            self._labels_with_images.add(label)

    def _describe_conflict(self, folder: str) -> str:
        """Return why `folder` is not available, for the warning in `assign_folder`."""
        owner = self._labels_by_folder.get(folder.casefold())
        if owner is None:
            return f"{folder} is the path of an image"
        return (
            f"{folder} is the folder of class {owner!r} (case, and characters that folder names cannot have, make no "
            "difference); if these two are one class, correct its name in the list"
        )

    def _claim_folder(self, folder: str, label: str) -> bool:
        """Give a folder to a label, unless another label has it or it is the path of an image.

        Return whether the folder belongs to the label, now or already before.
        """
        name = folder.casefold()
        if name not in self._labels_by_folder and _hash_path(name) not in self._paths:
            self._labels_by_folder[name] = label
        return self._labels_by_folder.get(name) == label

    def make_path_stem(self, image_ref: ImageRef) -> str:
        """Return the path of an image, without its suffix, in the folder of its label.

        The file name is the name of the image; if it has none, the last part of the URL's path.
        """
        name = image_ref.name and sanitize_name(image_ref.name, default_name="")
        return f"{self.assign_folder(image_ref.label)}/{name or file_stem_from_url(image_ref.url)}"


class _LabelFolder(NamedTuple):
    """The folder of a label, or a parent folder of it.

    Attributes:
        name: name of the folder.
        fallback_name: name that is used instead if another label already has a folder of this name.
        label: the label, or the part of it to which the parent folder belongs.
    """

    name: str
    fallback_name: str
    label: str


@lru_cache(maxsize=1024)
def _split_label_folders(label: str) -> list[_LabelFolder]:
    """Return the parent folders of a label's folder, the outermost first, and the folder itself."""
    names = label_to_folder(label).split("/")
    parts = [part for part in label.split("/") if sanitize_name(part, default_name="")]
    owners = ["/".join(parts[:count]) for count in range(1, len(names))] + [label]
    digests = (hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:8] for owner in owners)
    values = zip(names, digests, owners, strict=True)
    return [_LabelFolder(name, f"{name}-{digest}", owner) for name, digest, owner in values]


def is_in_folder_of(label: str, path: str) -> bool:
    """Return whether the path of an image is in the folder of a label, with or without a hash in the folder's name."""
    levels, folders = _split_label_folders(label), path.split("/")[:-1]
    return len(folders) >= len(levels) and all(
        folder in (level.name, level.fallback_name) for folder, level in zip(folders, levels, strict=False)
    )


def _hash_path(path: str) -> int:
    """Return a 64-bit hash of a path, without regard to case."""
    return int.from_bytes(hashlib.blake2b(path.casefold().encode(), digest_size=8).digest(), "big")
