"""The image formats that are read, by the names of Pillow's plug-ins. Nothing here decodes.

Pillow knows forty formats more, some of which start other programs (PostScript: Ghostscript); none of those is ever opened.
"""

import functools

from PIL import features

_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pam"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # formats that Pillow can be built without
FORMATS = tuple(_EXTENSIONS)
_CONVERT = "convert them to JPEG or PNG"


@functools.cache
def extensions() -> frozenset[str]:
    """Extensions, in lower case, of the files that the installed Pillow can decode."""
    return frozenset(
        extension for name, own in _EXTENSIONS.items() if name not in _FEATURES or features.check(_FEATURES[name]) for extension in own
    )


def remedy(extension: str) -> str:
    """Remedy for files of an extension that is not read, "" where they need not be images."""
    for name, own in _EXTENSIONS.items():
        if extension in own:
            return f'this Pillow is built without {name}: pip install -U "pillow>=11.3"'
    if extension in (".heic", ".heif", ".hif"):
        return f"no decoder here reads HEIC: {_CONVERT}"
    return _CONVERT if extension in _OTHER_IMAGES else ""


_OTHER_IMAGES = frozenset(
    (".jxl", ".tga", ".ico", ".psd", ".svg", ".eps", ".ps", ".pdf", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw", ".raw", ".dcm", ".pcx")
)
