"""Colour profile, EXIF and XMP of image files, and the orientation that they state."""

import re
import struct
import zlib
from typing import NamedTuple

from unfoldldm_basicsr.data.pixels import ImageError, check_size

PNG = b'\x89PNG\r\n\x1a\n'
_XMP_PNG, _XMP_JPEG = b'XML:com.adobe.xmp\0', b'http://ns.adobe.com/xap/1.0/\0'
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:>|\s*=\s*["\']))[1-8]')


class Metadata(NamedTuple):
    """What a file says: colour profile, EXIF (a TIFF structure), XMP, orientation (1 to 8)."""

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    orientation: int = 1

    def turned(self) -> 'Metadata':
        """For upright pixels: orientation as EXIF states it, EXIF and XMP with the normal one."""
        if self.exif is self.xmp is None:
            return self
        orientation, exif = _normal_orientation(self.exif)
        xmp = self.xmp and _XMP_ORIENTATION.sub(rb'\g<1>1', self.xmp)
        return Metadata(self.icc_profile, exif, xmp, max(orientation, self.orientation))


def _normal_orientation(exif: bytes | None) -> tuple[int, bytes | None]:
    """The orientation of an EXIF block, and the block with the normal one."""
    order = {b'II*\0': '<', b'MM\0*': '>'}.get((exif or b'')[:4])
    if order is None:
        return 1, None
    try:
        (directory,) = struct.unpack_from(f'{order}I', exif, 4)
        (count,) = struct.unpack_from(f'{order}H', exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f'{order}HH', exif, place)
            if tag == 0x0112:
                form = f'{order}{"I" if kind == 4 else "H"}'
                (orientation,) = struct.unpack_from(form, exif, place + 8)
                changed = bytearray(exif)
                struct.pack_into(form, changed, place + 8, 1)
                return orientation, bytes(changed)
    except struct.error:  # cut off: neither turned nor handed on
        return 1, None
    return 1, exif


def of_png(payload: bytes) -> Metadata:
    """Metadata of a PNG file. Raises ImageError for an animation."""
    icc = exif = xmp = None
    end = len(PNG) - 4  # of the content of a chunk; four bytes of check sum follow
    while end + 16 <= len(payload):
        length, kind = struct.unpack_from('>I4s', payload, end + 4)
        start, end = end + 12, end + 12 + length
        if kind == b'acTL' and payload[start : start + 4] != b'\0\0\0\1':
            raise ImageError('an animation; only still images are read.')
        if kind == b'eXIf':
            exif = payload[start:end]
        elif kind == b'iCCP':
            icc = _inflated(payload[start:end].partition(b'\0')[2][1:])
        elif kind == b'iTXt' and payload.startswith(_XMP_PNG, start):
            compressed = payload[start + len(_XMP_PNG)]
            text = payload[start + len(_XMP_PNG) + 2 : end].split(b'\0', 2)[-1]
            xmp = _inflated(text) if compressed else text
    return Metadata(icc, exif, xmp)


def _inflated(data: bytes) -> bytes | None:
    """Metadata that cannot be unpacked are no reason to refuse the image."""
    try:
        return zlib.decompress(data)
    except zlib.error:
        return None


def into_png(
    payload: bytes, icc_profile: bytes | None, exif: bytes | None, xmp: bytes | None
) -> bytes:
    chunks = b''
    if icc_profile:
        chunks += _png_chunk(b'iCCP', b'profile\0\0' + zlib.compress(icc_profile))
    if exif:
        chunks += _png_chunk(b'eXIf', exif)
    if xmp:
        chunks += _png_chunk(b'iTXt', _XMP_PNG + b'\0\0\0\0' + xmp)
    return payload[:33] + chunks + payload[33:]  # after IHDR, which always ends at byte 33


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def of_jpeg(payload: bytes) -> tuple[Metadata, tuple[int, int, int, int]]:
    """Metadata of a JPEG file; bits per sample, height, width and channels.

    Raises:
        ImageError: it names a size that only damaged files have.
        EOFError: its end is missing, which decoders fill with grey.
    """
    exif, xmp, profile, place, frame = None, None, {}, 2, (8, 0, 0, 0)
    while payload[place] == 0xFF:
        marker, start = payload[place + 1], place + 4
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        end = place + 2 + (payload[place + 2] << 8 | payload[place + 3])
        if marker >= 0xE0:
            if marker == 0xE1 and payload.startswith(b'Exif\0\0', start):
                exif = payload[start + 6 : end]
            elif marker == 0xE1 and payload.startswith(_XMP_JPEG, start):
                xmp = payload[start + len(_XMP_JPEG) : end]
            elif marker == 0xE2 and payload.startswith(b'ICC_PROFILE\0', start):
                profile[payload[start + 12]] = payload[start + 14 : end]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            frame = struct.unpack_from('>BHHB', payload, start)
            check_size(*frame[1:3])
            break  # metadata come before it
        elif marker == 0xDA:
            break
        place = end
    if payload.rfind(b'\xff\xd9', place) < 0:
        raise EOFError('its end is missing')
    icc = b''.join(profile[number] for number in sorted(profile)) or None
    return Metadata(icc, exif, xmp), frame
