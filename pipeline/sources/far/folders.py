"""Images in a folder of an object store and in all below it, with the captions that lie beside them."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from pipeline import MillError
from pipeline.manifest import FolderSource
from pipeline.sources.far import objects
from pipeline.sources.far.addresses import far
from pipeline.sources.imagefolder import NAMES
from pipeline.sources.names import PICTURES, Globs, split
from pipeline.sources.raw import ListingContext, RawImage, Unreadable, clean
from pipeline.sources.sidecars import EXTENSIONS, Sidecars


def list_object_folder(source: FolderSource, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each image in the order of their addresses, from one listing of the store.

    MillError where it can't be listed, or more is asked than images with captions beside them.
    """
    for key, asked in (("provided", source.provided), ("captions", source.captions == "metadata")):
        if asked:
            raise MillError(
                f"source.{key}: of a folder in an object store only images and captions beside them are read:"
                " copy the folder here, or name its files in a list."
            )
    root = source.path.rstrip("/")
    template = source.captions.get("template") if isinstance(source.captions, dict) else None
    left_out: Counter[str] = Counter()
    include, exclude = Globs(source.include), Globs(source.exclude)
    for folder, entries in sorted(_folders(root).items()):
        parts = {name: split(name) for name in entries}
        sidecars = Sidecars(parts) if source.captions == "sidecar" else None
        captioned: set[str] = set()
        for name in sorted(entries):
            base, kind = parts[name]
            if kind not in PICTURES:
                continue
            if (source.include and not include.match(folder + name)) or exclude.match(folder + name):
                continue
            captioned.update((name, base))
            sidecar = sidecars.of(name, base) if sidecars else None
            raw = RawImage("", None if sidecar else template or "", provided={})
            raw = far(raw, f"{root}/{folder}{name}", source.download)
            yield _with(raw, entries, name, f"{root}/{folder}", sidecar, source.encoding)
        left_out.update(
            kind
            for base, kind in parts.values()
            if kind not in PICTURES and (kind not in EXTENSIONS or base not in captioned)
        )
        if metadata := [name for name in NAMES if name in entries]:
            context.notes.append(f"{root}/{folder}{metadata[0]} is not read in an object store")
    if left_out:
        kinds = ", ".join(f"{count} .{kind}" for kind, count in left_out.most_common())
        context.notes.append(f"{root}: files that are no images, left out: {kinds}")


def _with(
    raw: RawImage, entries: Mapping[str, Any], name: str, folder: str, sidecar: str | None, encoding: str
) -> RawImage:
    """The image with its stamps and the place of its captions."""
    place: dict[str, Any] = {**raw.place, "root": folder}
    if sidecar:
        place |= {"sidecar": folder + sidecar} | ({"encoding": encoding} if encoding != "utf-8" else {})
    return replace(
        raw,
        place=cast(Any, place),
        stamp=objects.stamp_of_info(entries[name]),
        caption_stamp=objects.stamp_of_info(entries[sidecar]) if sidecar else "",
    )


def _folders(address: str) -> dict[str, dict[str, Any]]:
    """Folder below the root, "" or with / at its end -> name -> what the store says; hidden ones left out."""
    try:
        system, root = objects.file_system(address)
        found = system.find(root, detail=True)
        if not found:
            raise FileNotFoundError(root)
    except FileNotFoundError as error:
        raise MillError(f"source.path: {address} names no objects: set it to a folder of images.") from error
    except Exception as error:
        reason = error if isinstance(error, Unreadable) else objects.as_unreadable(error)
        raise MillError(f"source.path: {address} can't be listed: {reason}.") from error
    folders: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, info in found.items():
        below = clean(path.removeprefix(root).lstrip("/"))
        if any(part.startswith(".") for part in below.split("/")) or not below:
            continue
        folder, slash, name = below.rpartition("/")
        folders[folder + slash][name] = info
    return folders
