"""The image formats that are read, by the names of Pillow's plug-ins.

Pillow has forty more formats, some of which start other programs (PostScript: Ghostscript); they
are never opened.
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
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # plug-in -> feature that Pillow may be built without
FORMATS = tuple(_EXTENSIONS)
_CONVERT = "convert them to JPEG or PNG"


@functools.cache
def extensions() -> frozenset[str]:
    """Extensions of files that the installed Pillow can decode, in lower case."""
    return frozenset(
        extension for name, own in _EXTENSIONS.items() if name not in _FEATURES or features.check(_FEATURES[name]) for extension in own
    )


def remedy(extension: str) -> str:
    """The remedy for files with an extension that is not read; "" if they may be no images."""
    for name, own in _EXTENSIONS.items():
        if extension in own:
            return f'this Pillow is built without {name}: pip install -U "pillow>=11.3"'
    if extension in (".heic", ".heif", ".hif"):
        return f"no decoder here reads HEIC: {_CONVERT}"
    return _CONVERT if extension in _OTHER_IMAGES else ""


_OTHER_IMAGES = frozenset(
    (".jxl", ".tga", ".ico", ".psd", ".svg", ".eps", ".ps", ".pdf", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw", ".raw", ".dcm", ".pcx")
)
