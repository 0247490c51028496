"""Why an image cannot be had: one reason for programs, one sentence for people."""

from enum import StrEnum


class ImageReason(StrEnum):
    """Why a pull or an import failed."""

    REGISTRY_UNAVAILABLE = "registry_unavailable"
    """It did not answer, or not in time, or said that it cannot now. Trying again later may help."""
    UNAUTHORIZED = "unauthorized"
    """The registry wants credentials, or others."""
    NOT_FOUND = "not_found"
    """There is no such image, or nothing of ours may show it."""
    WRONG_PLATFORM = "wrong_platform"
    """The image exists, but not for this machine."""
    CORRUPT = "corrupt"
    """What came is not what its digest, its size or its format says."""
    TOO_LARGE = "too_large"
    """More than the limits of this node, or than its disk has room for."""
    STORE_UNAVAILABLE = "store_unavailable"
    """What keeps images for all nodes did not take it. Trying again later may help."""
    UNSAFE_CONTENT = "unsafe_content"
    """It holds, or asks for, what is never taken from an image's source."""


class ImageSourceError(Exception):
    """An image cannot be had. `str()` says why and never holds a credential."""

    def __init__(self, reason: ImageReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def unavailable(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.REGISTRY_UNAVAILABLE, detail)


def unauthorized(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.UNAUTHORIZED, detail)


def not_found(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.NOT_FOUND, detail)


def wrong_platform(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.WRONG_PLATFORM, detail)


def corrupt(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.CORRUPT, detail)


def too_large(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.TOO_LARGE, detail)


def unsafe(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.UNSAFE_CONTENT, detail)
