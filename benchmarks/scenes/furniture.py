"""Sweet Home 3D's furniture: rendered objects of 128 px with transparency, named by object (CC-BY-3.0 and CC0).

The catalogues name 820 objects. Twelve classes are told from the English names; what fits none is pasted as an object
of no class. Objects of one name that differ only in a number count as different: their models do.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

from PIL import Image

from benchmarks.scenes.fetch import Fetched, Package, fetch, keep_copyright
from benchmarks.scenes.stock import OTHER, Cutout

FURNITURE = Package(
    "sweethome3d-furniture", "debian", "1.8-1", "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
)
CATALOGUE = "PluginFurnitureCatalog.properties"
INDEX = "objects.json"

# The first pattern that is found in a name decides; "" is for names that would mislead the patterns after it.
PATTERNS: tuple[tuple[str, str], ...] = (
    (
        "",
        r"wheelchair|chairlift|tennis|sun ?glasses|glasses|magnif|mannequin|bathmat|table fan|goal|socket|plug|switch",
    ),
    ("", r"\b(window|door(?! cabinet)|railing|hood|tablet|book|bathroom|suit|towel|curtain|kitchen tools|pot)\b"),
    ("", r"clothes (?!washing)|medicine box|bread box|letters? (box|tray)|xylophone|cup cake|living room"),
    ("bath", r"island bath"),
    ("vehicle", r"seat leon"),
    ("lamp", r"lamp|\blights?\b|chandelier|lantern|lamppost|spotlight|flashlight|fluorescent"),
    ("chair", r"chair|stool|bench|\bseat\b"),
    ("sofa", r"sofa|couch|\bbz\b|day bed"),
    ("bed", r"\bbed\b|\bbeds\b|crib|futon|mattress"),
    ("cabinet", r"cabinet|wardrobe|bookcase|shelves|dresser|drawers|cupboard|locker|chest$|bedside|tv stand|trunck"),
    ("table", r"table|desk|island"),
    ("plant", r"plant|ficus|tree|bamboo|tulips|flower|pine|maple|yucca|orchid|hedge|cactus|palm|lily|spath|acacia"),
    ("plant", r"cypress|poplar|bush|beech|blossom|rose"),
    ("bath", r"washbasin|basin|toilets? unit|urinal|bidet|\bbath\b|bathtub|\bsink\b|shower|vanity|lavatory|jacuzzi"),
    ("appliance", r"fridge|refrigerator|oven|stove|cooker|cooktop|microwave|washing machine|dryer|freezer|toaster"),
    ("appliance", r"coffee (maker|machine|brewer)|mixer|blender|fryer|boiler|heater|radiator|sandwich maker|furnace"),
    ("vehicle", r"sedan|truck|\bcar\b|\bbus\b|\bbike|bicycle|motorbike|scooter|suv|\bvan\b|chevrolet|peugeot|renault"),
    ("vehicle", r"ford|beetle|yamaha|tricycle|fork lift|mower|rowboat|biplane"),
    ("tableware", r"\bcup\b|\bglass\b|bottle|plate|bowl|mug|teapot|vase|jar|cutlery|tray|creamer|pottery|saucer"),
    ("electronics", r"\btv\b|imac|ibook|laptop|speaker|phone|radio|stereo|camera|printer|keyboard|playstation|screen"),
    ("electronics", r"dvd|mp3|intercom|projector|joystick|headphones|computer|monitor"),
)
CLASSES = tuple(dict.fromkeys(name for name, _ in PATTERNS if name))


def label_of(name: str) -> int:
    """Return the class of an object by its English name, `OTHER` for none."""
    lowered = name.lower()
    found = next((label for label, pattern in PATTERNS if re.search(pattern, lowered)), "")
    return CLASSES.index(found) if found else OTHER


def fetch_furniture(cache: Path) -> Fetched:
    """Return the objects' pictures and index in the cache, fetched where they are missing."""

    def keep(unpacked: Path, kept: Path) -> None:
        index = []
        for archive in sorted((unpacked / "usr" / "share" / "sweethome3d" / "furniture").glob("*.sh3f")):
            index += keep_catalogue(archive, kept)
        (kept / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        keep_copyright(FURNITURE, unpacked, kept)

    return fetch(FURNITURE, cache, keep, edition="1")


def keep_catalogue(archive: Path, kept: Path) -> list[dict[str, str]]:
    """Save the pictures of one catalogue and return its entries: file, name, category, creator, licence."""
    entries = []
    with zipfile.ZipFile(archive) as content:
        properties = content.read(CATALOGUE).decode("latin-1")
        licence = re.search(r"^license=(.*)$", properties, re.MULTILINE)
        for number, fields in objects_in(properties).items():
            if "icon" not in fields or "name" not in fields:
                continue
            file = f"{archive.stem}-{number:03d}.png"
            with Image.open(io.BytesIO(content.read(fields["icon"].lstrip("/")))) as picture:
                picture.convert("RGBA").save(kept / file)
            facts = {key: fields.get(key, "") for key in ("name", "category", "creator")}
            entries.append({"file": file, **facts, "licence": licence.group(1).strip() if licence else ""})
    return entries


def objects_in(properties: str) -> dict[int, dict[str, str]]:
    """Return the fields of each object of a catalogue, by its number there."""
    found: dict[int, dict[str, str]] = {}
    for field, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", properties, re.MULTILINE):
        found.setdefault(int(number), {})[field] = value.strip()
    return found


def read_furniture(folder: Path) -> list[Cutout]:
    """Return the objects, cut to what is not transparent."""
    cutouts = []
    for entry in json.loads((folder / INDEX).read_text(encoding="utf-8")):
        with Image.open(folder / entry["file"]) as picture:
            rgba = picture.convert("RGBA")
        box = rgba.getchannel("A").getbbox()
        if box is not None:
            cutouts.append(Cutout(entry["file"], label_of(entry["name"]), entry["file"], rgba.crop(box)))
    return cutouts
